"""Whether the address of a constant can outlive the functions that name it: then live objects may keep the old one.

A constant that a fix changes is copied into the payload with all functions that refer to it. That is enough only when
no one else has its address. The analysis follows the address through the registers of each function; whatever it does
not understand (a store, a call, a return, an unknown instruction) lets the address escape.
Sources: AMD64 psABI 3.2 (registers that are arguments, results, or preserved), Intel SDM volume 2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import iced_x86 as x86

from midflight.forge import relocs as r
from midflight.forge.difference import layout
from midflight.forge.model import Atom, ObjectCode, Reference
from midflight.forge.objects import frames

# gcc's and clang's own names for the function's name as a string: nobody keeps their addresses.
NAME_STRING = re.compile(r"^__(?:func|FUNCTION|PRETTY_FUNCTION)__(?:\.\d+)?$")

_R = x86.Register
_M = x86.Mnemonic
_ARGUMENTS = frozenset({_R.RDI, _R.RSI, _R.RDX, _R.RCX, _R.R8, _R.R9})
_SCRATCH = _ARGUMENTS | {_R.RAX, _R.R10, _R.R11}
_BORROWERS = frozenset(
    {"memcpy", "memmove", "memcmp", "strlen", "strcmp", "strncmp", "strcasecmp", "strncasecmp", "strcpy", "strcat"}
    | {"puts", "fputs", "printf", "fprintf", "sprintf", "snprintf", "vsnprintf", "vfprintf", "fwrite", "perror"}
    | {"__printf_chk", "__fprintf_chk", "__sprintf_chk", "__snprintf_chk", "__memcpy_chk", "__strcpy_chk"}
)
"""Functions of the C library that look at what they are given and keep and return no address of it."""
_MOVES = frozenset({_M.MOV, _M.ADD, _M.SUB, _M.INC, _M.DEC, _M.AND, _M.MOVSXD, _M.LEA})
_CONDITIONAL = frozenset(getattr(_M, name) for name in dir(_M) if name.startswith("CMOV"))
_ONE_REGISTER = re.compile(r"\*$|^(?:unsigned |signed |long )*(?:int|char|short int|long int|short|long|_Bool|bool)$")
_WRITES = frozenset(
    {x86.OpAccess.WRITE, x86.OpAccess.READ_WRITE, x86.OpAccess.COND_WRITE, x86.OpAccess.READ_COND_WRITE}
)
_READS = frozenset(
    {x86.OpAccess.READ, x86.OpAccess.COND_READ, x86.OpAccess.READ_WRITE, x86.OpAccess.READ_COND_WRITE}
)  # fmt: skip

Place = tuple[str, int]
"""(key of a function, offset of an instruction)."""
Keys = frozenset[str]
"""Constants whose address a value may be (or come from). "~key": an offset out of that constant, relative to it."""
State = dict[int, Keys]
_NONE: Keys = frozenset()


def escaping(code: ObjectCode, constants: Keys) -> Mapping[str, str]:
    """Those of ``constants`` whose address may be held elsewhere, each with the name of what gives it away."""
    return _Analysis(code, constants).result()


def _full(register: int) -> int:
    return int(x86.RegisterExt.full_register(register))  # type: ignore[arg-type]


@dataclass(slots=True)
class _Analysis:
    code: ObjectCode
    constants: Keys
    escaped: dict[str, str] = field(default_factory=dict)
    states: dict[Place, State] = field(default_factory=dict)
    pending: list[Place] = field(default_factory=list)
    instructions: dict[str, dict[int, tuple[x86.Instruction, int, int]]] = field(default_factory=dict)
    """By function and offset: instruction, and where in it displacement and immediate are (0: nowhere)."""
    factory: x86.InstructionInfoFactory = field(default_factory=x86.InstructionInfoFactory)
    returns: Mapping[str, str] = field(default_factory=dict)
    catching: frozenset[str] = frozenset()

    def result(self) -> Mapping[str, str]:
        families = set()
        for atom in self.code.atoms.values():
            mine = frozenset(ref.atom for ref in atom.references if ref.atom in self.constants and ref.atom)
            if mine and atom.kind == "function":
                families.add(atom.parent or atom.key)
            elif mine and atom.key not in self.constants:
                self._escape(mine, atom)
        if not families:
            return self.escaped
        self.returns = layout.signatures(self.code.file)
        self.catching = frozenset(
            key for key, several in frames(self.code).items() if any(f.lsda is not None for f in several)
        )
        for atom in self.code.atoms.values():
            if atom.kind == "function" and (atom.parent or atom.key) in families:
                self._decode(atom)
        self.pending = [(key, at) for key, several in self.instructions.items() for at in several]
        while self.pending:
            self._step(*self.pending.pop())
        return self.escaped

    def _decode(self, atom: Atom) -> None:
        decoder = x86.Decoder(64, atom.data)
        found = self.instructions.setdefault(atom.key, {})
        for instruction in decoder:
            offsets = decoder.get_constant_offsets(instruction)
            displacement = offsets.displacement_offset if offsets.has_displacement else 0
            immediate = offsets.immediate_offset if offsets.has_immediate else 0
            found[instruction.ip] = (instruction, displacement, immediate)
            self.states[atom.key, instruction.ip] = {}

    def _escape(self, keys: Keys, holder: Atom) -> None:
        for key in keys:
            if not key.startswith("~"):
                self.escaped.setdefault(key, holder.name or holder.key)

    # --- one instruction ---------------------------------------------------------------------------------------------

    def _step(self, key: str, at: int) -> None:
        atom, state = self.code.atoms[key], dict(self.states[key, at])
        instruction, displacement, immediate = self.instructions[key][at]
        inside = [ref for ref in atom.references if at <= ref.offset < at + instruction.len]
        if instruction.flow_control != x86.FlowControl.NEXT:
            self._flow(atom, instruction, inside, state)
            return
        info = self.factory.info(instruction)
        address, value = self._named(atom, at, inside, displacement, immediate)
        memory = {_full(register) for register in (instruction.memory_base, instruction.memory_index)}
        memory |= {_full(m.base) for m in info.used_memory()} - {_R.RSP}
        for register in memory:
            address |= state.get(register, _NONE)
        operands = [i for i in range(instruction.op_count) if instruction.op_kind(i) == x86.OpKind.REGISTER]
        for i in operands:
            if info.op_access(i) in _READS:
                value |= state.get(_full(instruction.op_register(i)), _NONE)
        if instruction.mnemonic == _M.LEA:
            value |= address
        else:
            value |= self._loaded(address)
        explicit = memory | {_full(instruction.op_register(i)) for i in operands}
        for used in info.used_registers():
            if used.access in _READS and _full(used.register) not in explicit:
                self._escape(state.get(_full(used.register), _NONE), atom)
        result = self._judge(atom, instruction, state, value)
        string = instruction.is_string_instruction
        for used in info.used_registers():
            register = _full(used.register)
            if used.access not in _WRITES or (string and register in memory):
                continue
            whole = used.access in (x86.OpAccess.WRITE, x86.OpAccess.READ_WRITE) and (
                x86.RegisterExt.size(used.register) >= 4
            )
            state[register] = result if whole else state.get(register, _NONE) | result
        self._reach((key, at + instruction.len), state)

    def _named(
        self, atom: Atom, at: int, inside: list[Reference], displacement: int, immediate: int
    ) -> tuple[Keys, Keys]:
        """Constants that the instruction itself names: as where it accesses memory, and as a value."""
        address, value = _NONE, _NONE
        for ref in inside:
            if ref.atom is None or ref.atom not in self.constants:
                continue
            mine = frozenset({ref.atom})
            if ref.type in r.GOT_SLOT or (immediate and ref.offset - at == immediate):
                value |= mine
            elif displacement and ref.offset - at == displacement:
                address |= mine
            else:
                self._escape(mine, atom)
        return address, value

    def _loaded(self, address: Keys) -> Keys:
        """What a value may be that is read out of constants."""
        found: set[str] = set()
        for key in address:
            if key.startswith("~"):
                continue
            for ref in self.code.atoms[key].references:
                if ref.type in (r.PC32, r.PC64, r.PLT32):
                    found.add(f"~{key}")
                elif ref.atom in self.constants and ref.atom is not None:
                    found.add(ref.atom)
        return frozenset(found)

    def _judge(self, atom: Atom, instruction: x86.Instruction, state: State, value: Keys) -> Keys:
        """What the instruction's result may be; the value escapes where the instruction is not a plain one."""
        if not value:
            return _NONE
        mnemonic = instruction.mnemonic
        if mnemonic in (_M.CMP, _M.TEST):
            registers = [
                instruction.op_register(i)
                for i in range(instruction.op_count)
                if instruction.op_kind(i) == x86.OpKind.REGISTER
            ]
            if not all(state.get(_full(register)) for register in registers):
                self._escape(value, atom)
            return _NONE
        plain = mnemonic in _MOVES or mnemonic in _CONDITIONAL
        into = instruction.op0_kind == x86.OpKind.REGISTER and _R.RAX <= _full(instruction.op0_register) <= _R.R15
        if not plain or not into:
            self._escape(value, atom)
            return _NONE
        if mnemonic == _M.SUB and instruction.op1_kind == x86.OpKind.REGISTER:
            one, other = (state.get(_full(x), _NONE) for x in (instruction.op0_register, instruction.op1_register))
            return _NONE if one == other and len(one) == 1 else value
        return self._sum(value) if mnemonic in (_M.ADD, _M.LEA) else value

    def _sum(self, value: Keys) -> Keys:
        """An offset out of a table, added to the table's address, is the address of what the table refers to."""
        found = set(value)
        for key in value:
            if f"~{key}" in value:
                found -= {key, f"~{key}"}
                targets = (ref.atom for ref in self.code.atoms[key].references)
                found |= {target for target in targets if target is not None and target in self.constants}
        return frozenset(found)

    # --- ways through the function -----------------------------------------------------------------------------------

    def _reach(self, place: Place, state: State) -> None:
        known = self.states.get(place)
        if known is None:
            return  # Behind the end: nothing comes there.
        grown = False
        for register, keys in state.items():
            if not keys <= known.get(register, _NONE):
                known[register] = known.get(register, _NONE) | keys
                grown = True
        if grown:
            self.pending.append(place)

    def _flow(self, atom: Atom, instruction: x86.Instruction, inside: list[Reference], state: State) -> None:
        flow, kinds = instruction.flow_control, x86.FlowControl
        after = (atom.key, instruction.ip + instruction.len)
        if flow in (kinds.CALL, kinds.INDIRECT_CALL):
            self._call(atom, inside, state)
            self._reach(after, state)
        elif flow in (kinds.CONDITIONAL_BRANCH, kinds.UNCONDITIONAL_BRANCH):
            if flow == kinds.CONDITIONAL_BRANCH:
                self._reach(after, state)
            place = self._destination(atom, instruction, inside)
            if place is not None:
                self._reach(place, state)
            else:  # A tail call.
                self._call(atom, inside, state)
        elif flow == kinds.INDIRECT_BRANCH:
            self._indirect(atom, instruction, state)
        elif flow == kinds.RETURN:
            self._return(atom, state)
        elif flow not in (kinds.EXCEPTION, kinds.INTERRUPT):
            self._escape(_all(state), atom)

    def _destination(self, atom: Atom, instruction: x86.Instruction, inside: list[Reference]) -> Place | None:
        if not inside:
            return atom.key, instruction.near_branch_target
        ref = inside[0]
        place = (ref.atom or "", ref.addend + ref.bias)
        family = self.code.atoms[ref.atom].parent or ref.atom if ref.atom is not None else None
        return place if family == (atom.parent or atom.key) and place in self.states else None

    def _call(self, atom: Atom, inside: list[Reference], state: State) -> None:
        callee = inside[0] if inside else None
        borrows = callee is not None and callee.symbol in _BORROWERS
        for register in _ARGUMENTS:
            keys = state.get(register, _NONE)
            # What is copied out of a table that holds addresses is no longer followed.
            self._escape(self._loaded(keys) if borrows else keys, atom)
        local = callee is not None and callee.atom is not None and self.code.atoms[callee.atom].binding == "local"
        for register in _ARGUMENTS if local else _SCRATCH:  # Of static functions compilers know what they overwrite.
            state.pop(register, None)
        if atom.key in self.catching:
            self._escape(_all(state), atom)

    def _indirect(self, atom: Atom, instruction: x86.Instruction, state: State) -> None:
        """A jump by a table, to any label of the function that something refers to; or a tail call."""
        family = atom.parent or atom.key
        labels = set(self._labels(family))
        for place in labels:
            self._reach(place, state)
        if not labels:
            self._escape(_all(state), atom)
        tables = {key for key in self.constants if any(self._is_label(ref) for ref in self.code.atoms[key].references)}
        for register in _ARGUMENTS:  # It may be a tail call after all.
            self._escape(state.get(register, _NONE) - tables, atom)

    def _is_label(self, ref: Reference) -> bool:
        target = self.code.atoms.get(ref.atom or "")
        return target is not None and target.kind == "function" and ref.addend + ref.bias != 0

    def _labels(self, family: str) -> Iterator[Place]:
        for holder in self.code.atoms.values():
            for ref in holder.references:
                target = self.code.atoms.get(ref.atom or "")
                if target is not None and target.kind == "function" and (target.parent or target.key) == family:
                    place = (target.key, ref.addend + ref.bias)
                    if place[1] and place in self.states:
                        yield place

    def _return(self, atom: Atom, state: State) -> None:
        type_ = self.returns.get(self.code.atoms[atom.parent].name if atom.parent else atom.name, "?").split(" (")[0]
        registers = [] if type_ == "void" else [_R.RAX] if _ONE_REGISTER.search(type_) else [_R.RAX, _R.RDX]
        for register in registers:
            self._escape(state.get(register, _NONE), atom)


def _all(state: State) -> Keys:
    return frozenset().union(*state.values())
