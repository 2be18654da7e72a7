import ctypes
import os
import platform
import subprocess
import sys

import pytest

from core.allocator import keep_freed_memory

FREED = 64 * 2**20


def test_without_glibc_nothing_is_done(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not keep_freed_memory()
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("there is no library of no name"))
    assert not keep_freed_memory()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc")
@pytest.mark.parametrize("keeps", [True, False])
def test_a_freed_block_stays_with_the_process_only_if_asked(keeps):
    code = f"""
import ctypes, os
from core.allocator import keep_freed_memory

if {keeps}:
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
block = libc.malloc(ctypes.c_size_t({FREED}))
ctypes.memset(block, 1, {FREED})
libc.free(ctypes.c_void_p(block))
print(int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert (int(run.stdout) > FREED) == keeps
