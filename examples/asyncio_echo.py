"""A port beside other tasks, by asyncio: it answers pings and says every second what came.

python asyncio_echo.py NIC 192.0.2.1
"""

import asyncio
import sys

import pyvirtnet


async def answer(port: pyvirtnet.Port, address: str) -> None:
    """Until the port is closed."""
    async for burst in port:
        port.send_burst(burst[pyvirtnet.answer_pings(burst, port.mac, [address])])


async def report(port: pyvirtnet.Port) -> None:
    """Until it is cancelled."""
    while True:
        await asyncio.sleep(1)
        print(f"{port.stats.rx_frames} frames came, {port.stats.tx_frames} were sent")


async def serve(port: pyvirtnet.Port, address: str) -> None:
    """Both, until the port is closed."""
    reporter = asyncio.create_task(report(port))
    await answer(port, address)
    reporter.cancel()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        with pyvirtnet.open(sys.argv[1]) as port:
            asyncio.run(serve(port, sys.argv[2]))
    except (pyvirtnet.Error, KeyboardInterrupt) as error:
        sys.exit(str(error) or 130)
