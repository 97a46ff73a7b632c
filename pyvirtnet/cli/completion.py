"""pyvirtnet completion: a script that makes a shell complete commands and options."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence

from ._command import OK, Parser, program, run
from .main import COMMANDS

_HOW = """bash: eval "$(pyvirtnet completion bash)", in ~/.bashrc
zsh:  eval "$(pyvirtnet completion zsh)", in ~/.zshrc, after compinit
fish: pyvirtnet completion fish > ~/.config/fish/completions/pyvirtnet.fish"""
Words = dict[tuple[str, ...], dict[str, str]]  # (), (command,) or (command, sub): word -> its help


def parser() -> Parser:
    made = Parser(
        prog=program("completion"),
        description=__doc__,
        epilog=_HOW,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("shell", choices=list(_SHELLS))
    made.add_argument("--json", action="store_true", help="shell and script, as JSON")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return run("completion", lambda: _print(args.shell, args.json))


def _print(shell: str, as_json: bool) -> int:
    script = _SHELLS[shell](words())
    print(json.dumps({"shell": shell, "script": script}) if as_json else script)
    return OK


def words() -> Words:
    """What may come next, after each command and subcommand."""
    found: Words = {(): {name: command.about for name, command in COMMANDS.items()}}
    for name, command in COMMANDS.items():
        module = sys.modules[__name__] if name == "completion" else command.load()
        found |= dict(_walk((name,), _inner(module.parser(), command.words)))
        found[name,] |= found.get((name, name), {})  # `pyvirtnet bind` is `bind bind`
    return found


def _inner(made: argparse.ArgumentParser, path: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of a subcommand that is a command of its own, too."""
    for word in path:
        made = _subparsers(made)[word][0]
    return made


def _walk(
    path: tuple[str, ...], made: argparse.ArgumentParser
) -> Iterator[tuple[tuple[str, ...], dict[str, str]]]:
    inner = _subparsers(made)
    here = {name: about for name, (_, about) in inner.items()}
    for action in made._actions:
        about = (action.help or "").replace("%%", "%")
        here |= {word: about for word in action.option_strings if word[:2] == "--"}
        if not action.option_strings and not isinstance(action, argparse._SubParsersAction):
            here |= dict.fromkeys(map(str, action.choices or ()), "")
    yield path, here
    for name, (sub, _) in inner.items():
        yield from _walk((*path, name), sub)


def _subparsers(
    made: argparse.ArgumentParser,
) -> dict[str, tuple[argparse.ArgumentParser, str]]:
    for action in made._actions:
        if isinstance(action, argparse._SubParsersAction):
            abouts = {choice.dest: choice.help or "" for choice in action._choices_actions}
            return {name: (sub, abouts.get(name, "")) for name, sub in action.choices.items()}
    return {}


def _quoted(options: Iterable[str]) -> str:
    return shlex.quote(" ".join(options))


def _cases(found: Words) -> str:
    """Branches of a `case` over the words typed before, that set `options`."""
    rows = [
        f"        {shlex.quote(' '.join(path))}) options={_quoted(options)} ;;"
        for path, options in found.items()
        if path and options
    ]
    return "\n".join(rows)


def _bash(found: Words) -> str:
    return f"""_pyvirtnet() {{
    local options= seen=("${{COMP_WORDS[@]:1:COMP_CWORD-1}}") first
    [ "$COMP_CWORD" -gt 1 ] || options={_quoted(found[()])}
    for first in "${{seen[*]:0:2}}" "${{seen[*]:0:1}}"; do
        [ -z "$options" ] || break
        case $first in
{_cases(found)}
        esac
    done
    COMPREPLY=($(compgen -W "$options" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _pyvirtnet pyvirtnet"""


def _zsh(found: Words) -> str:
    return f"""#compdef pyvirtnet
_pyvirtnet() {{
    local first options
    local -a seen=(${{words[2,CURRENT-1]}})
    (( CURRENT > 2 )) || options={_quoted(found[()])}
    for first in "${{seen[1]}} ${{seen[2]}}" "${{seen[1]}}"; do
        [[ -z $options ]] || break
        case $first in
{_cases(found)}
        esac
    done
    compadd -- ${{=options}}
    _files
}}
compdef _pyvirtnet pyvirtnet"""


def _fish(found: Words) -> str:
    lines = ["complete -c pyvirtnet -n __fish_use_subcommand -f"]
    for path, options in found.items():
        seen = " and ".join(f"__fish_seen_subcommand_from {word}" for word in path)
        when = shlex.quote((seen or "__fish_use_subcommand").replace(" and ", "; and "))
        for word, about in options.items():
            what = f"-l {word[2:]}" if word.startswith("--") else f"-a {word}"
            lines.append(f"complete -c pyvirtnet -n {when} {what} -d {shlex.quote(about)}")
    return "\n".join(lines)


_SHELLS = {"bash": _bash, "zsh": _zsh, "fish": _fish}


if __name__ == "__main__":
    sys.exit(main())
