"""Classic BPF programs, checked once and then run over whole bursts."""

cimport cython
cimport numpy as cnp

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from ._burst cimport Burst
from ._cursor cimport Cursor, begin, skip, take
from ._pages cimport Store, heads

import numpy as np

cnp.import_array()

MAX_INSTRUCTIONS = _MOST

cdef enum:
    _MOST = 4096
    CELLS = 16                  # of scratch memory
    # an instruction's code: class, then size and mode of a load, or operation and operand
    LD = 0
    LDX = 1
    ST = 2
    STX = 3
    ALU = 4
    JMP = 5
    RET = 6
    MISC = 7
    WORD = 0x00
    HALF = 0x08
    BYTE = 0x10
    IMM = 0x00
    ABS = 0x20
    IND = 0x40
    MEM = 0x60
    LEN = 0x80
    MSH = 0xA0
    BY_X = 0x08
    ADD = 0x00
    SUB = 0x10
    MUL = 0x20
    DIV = 0x30
    OR = 0x40
    AND = 0x50
    LSH = 0x60
    RSH = 0x70
    NEG = 0x80
    MOD = 0x90
    XOR = 0xA0
    JA = 0x00
    JEQ = 0x10
    JGT = 0x20
    JGE = 0x30
    JSET = 0x40
    RET_A = 0x10
    TAX = 0x00
    TXA = 0x80

cdef struct Instruction:        # struct bpf_insn
    uint16_t code
    uint8_t if_true             # instructions to skip
    uint8_t if_false
    uint32_t k


@cython.auto_pickle(False)
cdef class Program:
    """A filter: `program(burst)` is bool[n], which of the burst's frames it lets through.

    code    instructions of eight bytes as struct bpf_insn has them, in the machine's byte order
    Raises ValueError for a program that could run for ever, past its end or out of its memory.
    """

    cdef Instruction *code
    cdef uint32_t count

    def __init__(self, bytes code not None):
        cdef uint32_t count = len(code) // sizeof(Instruction), i
        cdef Instruction *copy
        if len(code) % sizeof(Instruction) or not 1 <= count <= _MOST:
            raise ValueError(f"a BPF program has 1 to {_MOST} instructions of eight bytes")
        if self.code != NULL:
            raise TypeError("a filter is made once")
        copy = <Instruction *>malloc(len(code))
        if copy == NULL:
            raise MemoryError
        memcpy(copy, <const uint8_t *>code, len(code))
        for i in range(count):
            if not _is_sound(&copy[i], i, count):
                number = copy[i].code
                free(copy)
                raise ValueError(f"instruction {i} of a BPF program, {number:#x}, is not sound")
        self.code, self.count = copy, count

    def __dealloc__(self):
        free(self.code)

    def __len__(self):
        return self.count

    def __call__(self, Burst burst not None):
        """bool[n]: which frames of `burst` the filter lets through."""
        cdef Store *store = burst.store
        cdef Py_ssize_t i
        cdef cnp.ndarray passed = np.zeros(burst.count, np.bool_)
        cdef uint8_t *verdict = <uint8_t *>cnp.PyArray_DATA(passed)
        if self.count == 0:
            raise TypeError("a filter is used after it was made")
        with nogil:
            for i in range(burst.count):
                verdict[i] = _run(self.code, store, burst.frame(i)) != 0
        return passed


cdef bint _is_sound(const Instruction *it, uint32_t at, uint32_t count) noexcept:
    """Known, and it goes on inside the program, whose last instruction is a return."""
    cdef uint16_t kind = it.code & 7, rest = it.code & ~7
    cdef uint64_t left = count - at - 1  # instructions behind this one
    if it.code > 0xFF or (left == 0 and kind != RET):
        return False
    if kind == LD:
        if rest == MEM:
            return it.k < CELLS
        return rest in (IMM, LEN, ABS, ABS | HALF, ABS | BYTE, IND, IND | HALF, IND | BYTE)
    if kind == LDX:
        return it.k < CELLS if rest == MEM else rest in (IMM, LEN, MSH | BYTE)
    if kind == ST or kind == STX:
        return rest == 0 and it.k < CELLS
    if kind == ALU:
        if rest == DIV or rest == MOD:
            return it.k != 0
        return rest & ~BY_X in (ADD, SUB, MUL, DIV, OR, AND, LSH, RSH, NEG, MOD, XOR)
    if kind == JMP:
        if rest == JA:
            return it.k < left
        return (rest & ~BY_X in (JEQ, JGT, JGE, JSET)
                and it.if_true < left and it.if_false < left)
    if kind == RET:
        return rest in (0, RET_A)
    return rest in (TAX, TXA)


cdef inline bint _load(const Store *store, uint32_t frame, uint64_t offset, uint32_t size,
                       uint32_t *value) noexcept nogil:
    """A big-endian number out of the frame; False if it ends before."""
    cdef uint8_t raw[4]
    cdef const uint8_t *at = raw
    cdef Cursor cursor
    cdef uint32_t length = store.lengths[frame]
    if offset + size > length:
        return False
    if offset + size <= min(length, store.head_room):
        at = heads(store) + <size_t>frame * store.stride + offset
    else:
        begin(&cursor, store, frame)
        if not skip(&cursor, <uint32_t>offset) or not take(&cursor, raw, size):
            return False
    if size == 4:
        value[0] = <uint32_t>at[0] << 24 | at[1] << 16 | at[2] << 8 | at[3]
    else:
        value[0] = at[0] << 8 | at[1] if size == 2 else at[0]
    return True


cdef uint32_t _run(const Instruction *code, const Store *store, uint32_t frame) noexcept nogil:
    """What the program returns for a frame: 0 refuses it, as does a load behind its end."""
    cdef uint32_t a = 0, x = 0, value, kind
    cdef uint32_t[CELLS] cells
    cdef const Instruction *it = code
    memset(cells, 0, sizeof(cells))
    while True:
        kind = it.code & 7
        if kind == LD or kind == LDX:
            if not _fetch(it, store, frame, x, cells, &value):
                return 0
            if kind == LD:
                a = value
            else:
                x = value
        elif kind == ST:
            cells[it.k] = a
        elif kind == STX:
            cells[it.k] = x
        elif kind == ALU:
            value = x if it.code & BY_X else it.k
            if value == 0 and (it.code & 0xF0 == DIV or it.code & 0xF0 == MOD):
                return 0
            a = _calculate(it.code & 0xF0, a, value)
        elif kind == JMP:
            it += _distance(it, a, x)
        elif kind == RET:
            return a if it.code & RET_A else it.k
        elif it.code & TXA:
            a = x
        else:
            x = a
        it += 1


cdef inline bint _fetch(const Instruction *it, const Store *store, uint32_t frame, uint32_t x,
                        const uint32_t *cells, uint32_t *value) noexcept nogil:
    cdef uint32_t mode = it.code & 0xE0, size = 4
    if it.code & 0x18 == HALF:
        size = 2
    elif it.code & 0x18 == BYTE:
        size = 1
    if mode == ABS:
        return _load(store, frame, it.k, size, value)
    if mode == IND:
        return _load(store, frame, <uint64_t>x + it.k, size, value)
    if mode == MSH:             # the length of an IPv4 header
        if not _load(store, frame, it.k, 1, value):
            return False
        value[0] = (value[0] & 15) * 4
    elif mode == LEN:
        value[0] = store.lengths[frame]
    elif mode == MEM:
        value[0] = cells[it.k]
    else:
        value[0] = it.k
    return True


cdef inline uint32_t _calculate(uint32_t operation, uint32_t a, uint32_t b) noexcept nogil:
    """Numbers wrap; `b` is not 0 where it divides."""
    if operation == ADD:
        return a + b
    if operation == SUB:
        return a - b
    if operation == MUL:
        return a * b
    if operation == DIV:
        return a // b
    if operation == MOD:
        return a % b
    if operation == OR:
        return a | b
    if operation == AND:
        return a & b
    if operation == XOR:
        return a ^ b
    if operation == LSH:
        return a << b if b < 32 else 0
    if operation == RSH:
        return a >> b if b < 32 else 0
    return -a


cdef inline uint32_t _distance(const Instruction *it, uint32_t a, uint32_t x) noexcept nogil:
    """Instructions that a jump skips."""
    cdef uint32_t operation = it.code & 0xF0, b = x if it.code & BY_X else it.k
    cdef bint yes
    if operation == JA:
        return it.k
    if operation == JEQ:
        yes = a == b
    elif operation == JGT:
        yes = a > b
    elif operation == JGE:
        yes = a >= b
    else:
        yes = a & b != 0
    return it.if_true if yes else it.if_false
