"""Where main is: the start-up code of a dynamically linked executable hands its address to the C library.

Source: glibc, sysdeps/x86_64/start.S: main in %rdi, then a call of __libc_start_main through its GOT slot or PLT entry.
"""

from __future__ import annotations

import iced_x86 as x86

from midflight.forge.matching import decode
from midflight.forge.matching.runimage import RunImage

_START_BYTES = 64
_STARTER = "__libc_start_main"


def main_address(run: RunImage) -> int | None:
    """The address of main; None when the start-up code is not glibc's, or does not say."""
    if run.elf.kind != "executable" or not run.elf.entry:
        return None
    found = None
    m, code = x86.Mnemonic, x86.Code
    for instruction in decode.decode(run.code(run.elf.entry, _START_BYTES), run.elf.entry):
        into_rdi = instruction.op0_kind == x86.OpKind.REGISTER and instruction.op0_register in (
            x86.Register.RDI,
            x86.Register.EDI,
        )
        if instruction.mnemonic == m.LEA and into_rdi and instruction.is_ip_rel_memory_operand:
            found = instruction.ip_rel_memory_address
        elif instruction.code in (code.MOV_RM64_IMM32, code.MOV_R32_IMM32) and into_rdi:
            found = instruction.immediate32
        elif into_rdi and instruction.mnemonic in (m.MOV, m.XOR, m.POP):
            found = None
        elif instruction.mnemonic == m.CALL:
            return found if found and _starts(run, instruction) and run.is_code(found) else None
    return None


def _starts(run: RunImage, call: x86.Instruction) -> bool:
    if decode.is_near_branch(call):
        entry = run.plt_at(call.near_branch_target)
        return entry is not None and entry.symbol is not None and entry.symbol.name == _STARTER
    if not call.is_ip_rel_memory_operand:
        return False
    pointer = run.pointer(call.ip_rel_memory_address)
    return pointer is not None and pointer.symbol is not None and pointer.symbol.name == _STARTER
