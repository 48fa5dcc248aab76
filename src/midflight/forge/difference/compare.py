"""Decides whether an atom of pre and one of post are the same: bytes, and what their relocated fields refer to."""

from __future__ import annotations

from midflight.forge.difference.correlate import STORAGE, Correlation, masked
from midflight.forge.frames import Cie
from midflight.forge.model import Atom, Reference
from midflight.forge.objects import Frame, frames

# R_X86_64_PC32 and PLT32 mean the same for a call; GOTPCREL and its relaxable forms are one request.
_SAME_TYPE = {4: 2, 41: 9, 42: 9}


class Comparer:
    """Compares atoms of two correlated objects. Answers are kept; asked again, they cost nothing."""

    def __init__(self, correlation: Correlation) -> None:
        self._correlation = correlation
        self._pre = correlation.pre.atoms
        self._post = correlation.post.atoms
        self._masked: dict[tuple[int, str], bytes] = {}
        self._answers: dict[tuple[str, str], bool] = {}
        self._pre_frames = frames(correlation.pre)
        self._post_frames = frames(correlation.post)

    def same_code(self, pre_key: str, post_key: str) -> bool:
        """Whether two functions are the same: code, references, and what the unwinder does with them."""
        return self.same(pre_key, post_key) and self.same_unwinding(pre_key, post_key)

    def same(self, pre_key: str, post_key: str) -> bool:
        """Whether two atoms have the same bytes and the same references.

        Named things count as the same when they are correlated, whatever they contain; strings, unnamed constants and
        jump tables are compared by content. Circles (a jump table leads back into its function) are taken as the same.
        """
        known = self._answers.get((pre_key, post_key))
        if known is not None:
            return known
        self._answers[pre_key, post_key] = True
        answer = self._compare(self._pre[pre_key], self._post[post_key])
        self._answers[pre_key, post_key] = answer
        return answer

    def bytes_of(self, side: int, atom: Atom) -> bytes:
        """The masked bytes; those of zeroed storage are zeros."""
        known = self._masked.get((side, atom.key))
        if known is None:
            known = masked(atom) if atom.data else bytes(min(atom.size, 1 << 20))
            self._masked[side, atom.key] = known
        return known

    def _compare(self, one: Atom, other: Atom) -> bool:
        if one.size != other.size or len(one.references) != len(other.references):
            return False
        if self.bytes_of(0, one) != self.bytes_of(1, other):
            return False
        return all(self.same_reference(r, s) for r, s in zip(one.references, other.references, strict=True))

    def same_reference(self, one: Reference, other: Reference, *, anywhere: bool = False) -> bool:
        """Whether two references mean the same. ``anywhere``: their own offsets do not matter."""
        if _SAME_TYPE.get(one.type, one.type) != _SAME_TYPE.get(other.type, other.type):
            return False
        if one.offset != other.offset and not anywhere:
            return False
        if one.atom is None or other.atom is None:
            return one.atom is other.atom and one.symbol == other.symbol and one.addend == other.addend
        old, new = self._pre[one.atom], self._post[other.atom]
        if self._correlation.to_pre.get(new.key) == old.key:
            return one.addend == other.addend
        if new.key in self._correlation.to_pre or old.key in self._correlation.to_post:
            return False
        return self._same_content(old, one.addend + one.bias, new, other.addend + other.bias)

    def _same_content(self, old: Atom, old_offset: int, new: Atom, new_offset: int) -> bool:
        """Whether two things without an identity of their own mean the same from these offsets on."""
        if old.kind == "string" and new.kind == "string":
            inside = 0 <= old_offset <= old.size and 0 <= new_offset <= new.size
            if not inside:  # a loop that counts first begins one byte before the string (of this label)
                return old_offset == new_offset and old.data == new.data
            return self._plain(old)[old_offset:] == self._plain(new)[new_offset:]
        if old.padded and new.padded and old_offset == new_offset:
            # The same instructions read the same number of bytes, which both have: what zeros fill says nothing.
            return self._plain(old)[old_offset:] == self._plain(new)[new_offset:]
        if (old.name and old.binding != "local") or (new.name and new.binding != "local"):
            return False
        constants = STORAGE[old.kind] == STORAGE[new.kind] and STORAGE[old.kind] in ("constant", "other")
        slots = old.kind == new.kind == "data" and not (old.name or new.name) and _is_slot(old) and _is_slot(new)
        return (constants or slots) and old_offset == new_offset and self.same(old.key, new.key)

    @staticmethod
    def _plain(atom: Atom) -> bytes:
        return atom.data.rstrip(b"\0") if atom.padded else atom.data

    # --- unwinding -----------------------------------------------------------------------------------------------

    def same_unwinding(self, pre_key: str, post_key: str) -> bool:
        """Whether exceptions take the same way through both functions (personality and exception table)."""
        old, new = self._pre_frames.get(pre_key, ()), self._post_frames.get(post_key, ())
        return len(old) == len(new) and all(self._same_frame(a, b) for a, b in zip(old, new, strict=True))

    def _same_frame(self, old: Frame, new: Frame) -> bool:
        if (old.offset, old.size, _kind(old.cie)) != (new.offset, new.size, _kind(new.cie)):
            return False
        return self._same_optional(old.personality, new.personality) and self._same_optional(old.lsda, new.lsda)

    def _same_optional(self, old: Reference | None, new: Reference | None) -> bool:
        if old is None or new is None:
            return old is new
        return self.same_reference(old, new, anywhere=True)


def _kind(cie: Cie | None) -> tuple[object, ...]:
    if cie is None:
        return ()
    return (cie.augmentation, cie.return_register, cie.instructions)


def _is_slot(atom: Atom) -> bool:
    """A slot that holds an address and nothing else, made by the compiler (type info for exception tables)."""
    return atom.size == 8 and len(atom.references) == 1


__all__ = ["Comparer"]
