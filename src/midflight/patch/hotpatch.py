"""Reading and writing hotpatch files.

The order of reading is the security rule: limits and structure, then the signature, then the digests of the members,
and only then is the manifest interpreted and checked. What :func:`read_hotpatch` returns can be relied upon, field by
field.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from midflight.errors import PatchFileError
from midflight.patch import container, signature
from midflight.patch.encoding import MAX_PAYLOAD, decode_manifest, encode_manifest
from midflight.patch.fields import FieldError, show
from midflight.patch.manifest import Manifest, Target
from midflight.patch.signature import Envelope, PublicKey, Signer, Statement
from midflight.patch.validate import validate_manifest

FORMAT_VERSION = 1
REQUIRES = "0.1"
"""The first Midflight that reads this format; a file says so, for readers that are older than it."""

STATEMENT = "statement.dsse.json"
MANIFEST = "manifest.json"
MAX_STATEMENT = 64 << 10
MAX_SYMBOLS = 16 << 20
"""Largest symbols member, in bytes."""

# What Windows alone has, and what it has not.
_BINARY, _CLOSED = getattr(os, "O_BINARY", 0), getattr(os, "O_CLOEXEC", 0)
_AT_ONCE = getattr(os, "O_NONBLOCK", 0)

_TRUST = "give the public key of its author with --trust, if you know whose it is"
_AGAIN = "get the file again from where it was published, or build it again with midflight build"


@dataclass(frozen=True, slots=True)
class Hotpatch:
    """A hotpatch whose signature, digests and manifest are verified. Payloads are by ``Target.payload``."""

    manifest: Manifest
    payloads: Mapping[str, bytes]
    symbols: Mapping[str, bytes]
    """ELF files with symbols for people's tools, by build-id; never interpreted by Midflight."""
    signers: tuple[str, ...]
    """Key ids of the trusted keys that signed it; at least one, but of a file that is believed by its digest."""
    digest: str
    """sha256 of the file, in hex."""

    def payload(self, target: Target) -> bytes:
        """The payload of one of the manifest's targets."""
        return self.payloads[target.payload]


@dataclass(frozen=True, slots=True)
class UnverifiedHotpatch:
    """A hotpatch of which NOTHING is proven but its form: only for showing it to people. Nothing applies this type."""

    manifest: Manifest
    payloads: Mapping[str, bytes]
    symbols: Mapping[str, bytes]
    claimed_signers: tuple[str, ...]
    """Key ids that stand in the file; anybody could have written them there."""
    digest: str


def read_hotpatch(path: str | Path, trusted: Sequence[PublicKey]) -> Hotpatch:
    """Read a hotpatch that at least one of the trusted keys signed.

    Raises:
        PatchFileError: the file cannot be read, or is malformed, altered, not signed by a trusted key, too large, or
            of a future version.
    """
    data = _read(path)
    with _Refusal(path):
        contents = _parse(data, lambda envelope: envelope.verified_by(trusted))
    return Hotpatch(contents.manifest, contents.payloads, contents.symbols, contents.signers, _digest(data))


def read_vouched(path: str | Path, digest: str, trusted: Sequence[PublicKey] = ()) -> Hotpatch:
    """Read a hotpatch whose sha256 (hex) others have signed, as a repository's offline keys do.

    Args:
        trusted: if any, one of these must have signed the file itself as well.

    Raises:
        PatchFileError: as :func:`read_hotpatch`, or it is another file than that.
    """
    data = _read(path)
    with _Refusal(path):
        if _digest(data) != digest:
            raise FieldError("is another file than the one that was vouched for", "sha256")
        contents = _parse(data, lambda envelope: envelope.verified_by(trusted) if trusted else ())
    return Hotpatch(contents.manifest, contents.payloads, contents.symbols, contents.signers, _digest(data))


def read_unverified(path: str | Path) -> UnverifiedHotpatch:
    """Read a hotpatch without asking who made it. All limits and checks hold, except that of the signature.

    Raises:
        PatchFileError: as :func:`read_hotpatch`, but for the signature.
    """
    data = _read(path)
    with _Refusal(path):
        contents = _parse(data, lambda envelope: tuple(envelope.signatures))
    return UnverifiedHotpatch(contents.manifest, contents.payloads, contents.symbols, contents.signers, _digest(data))


def write_hotpatch(
    path: str | Path,
    manifest: Manifest,
    payloads: Mapping[str, bytes],
    signer: Signer,
    symbols: Mapping[str, bytes] | None = None,
) -> str:
    """Write a signed hotpatch; returns the sha256 of the file.

    The same input gives the same bytes. The file appears as a whole or not at all.

    Args:
        payloads: payload bytes by ``Target.payload``.
        symbols: ELF files with symbols for debuggers, by build-id.

    Raises:
        PatchFileError: the manifest or a payload would not be read again, or the file cannot be written.
    """
    data = encode_hotpatch(manifest, payloads, [signer], symbols, name=path)
    _write(path, data)
    return _digest(data)


def encode_hotpatch(
    manifest: Manifest,
    payloads: Mapping[str, bytes],
    signers: Sequence[Signer],
    symbols: Mapping[str, bytes] | None = None,
    *,
    name: str | Path = "hotpatch",
) -> bytes:
    """The bytes of a signed hotpatch file. Raises as :func:`write_hotpatch`; ``name`` is for the message."""
    with _Refusal(name, "this is a fault of the builder; please report it"):
        members = {MANIFEST: encode_manifest(manifest)}
        for target in manifest.targets:
            if target.payload not in payloads:
                raise FieldError("is not among the payloads", target.payload)
            members[target.payload] = payloads[target.payload]
        for target in manifest.targets:
            if symbols and target.build_id in symbols:
                members[symbols_member(target)] = symbols[target.build_id]
        unused = (payloads.keys() - members.keys()) | ((symbols or {}).keys() - {t.build_id for t in manifest.targets})
        if unused:
            raise FieldError("belongs to no target", min(unused))
        predicate = {
            "formatVersion": FORMAT_VERSION,
            "requires": REQUIRES,
            "builder": manifest.builder,
            "name": manifest.name,
            "sequence": manifest.sequence,
        }
        subjects = [(member, _digest(content)) for member, content in members.items()]
        envelope = Envelope(signature.encode_statement(subjects, predicate), {})
        for signer in signers:
            envelope = envelope.signed_by(signer)
        data = container.pack({STATEMENT: signature.encode_envelope(envelope), **members})
        # What cannot be read back is never written.
        if _parse(data, lambda found: tuple(found.signatures)).manifest != manifest:
            raise FieldError("does not come out of its own encoding unchanged", MANIFEST)
    return data


def add_signature(path: str | Path, signer: Signer) -> str:
    """Sign an existing hotpatch once more, in place; returns the new sha256 of the file.

    The new signature vouches for what the file says now, whoever signed it before: look at it first.

    Raises:
        PatchFileError: the file is not a hotpatch that could be read, or cannot be written.
    """
    data = _read(path)
    with _Refusal(path):
        _parse(data, lambda envelope: tuple(envelope.signatures))
        members = container.unpack(data)
        envelope = signature.decode_envelope(members[STATEMENT]).signed_by(signer)
        if len(envelope.signatures) > signature.MAX_SIGNATURES:
            raise FieldError(f"has {signature.MAX_SIGNATURES} signatures, and cannot take more", STATEMENT)
        signed = container.pack({**members, STATEMENT: signature.encode_envelope(envelope)})
    _write(path, signed)
    return _digest(signed)


def symbols_member(target: Target) -> str:
    """Name of the member with a target's symbols."""
    return f"symbols/{target.build_id}.debug"


@dataclass(frozen=True, slots=True)
class _Contents:
    manifest: Manifest
    payloads: Mapping[str, bytes]
    symbols: Mapping[str, bytes]
    signers: tuple[str, ...]


def _parse(data: bytes, accept: Callable[[Envelope], tuple[str, ...]]) -> _Contents:
    """The steps of reading, in the only order that is safe. ``accept`` returns the signers or raises."""
    members = container.unpack(data)
    if next(iter(members), None) != STATEMENT:
        raise FieldError("is missing, or not the first member", STATEMENT)
    if len(members[STATEMENT]) > MAX_STATEMENT:
        raise FieldError(f"is larger than {MAX_STATEMENT} bytes", STATEMENT)
    envelope = signature.decode_envelope(members.pop(STATEMENT))
    signers = accept(envelope)
    statement = signature.decode_statement(envelope.payload)
    _check_version(statement)
    digests = tuple((name, _digest(content)) for name, content in members.items())
    if [name for name, _ in digests] != [name for name, _ in statement.subjects]:
        raise FieldError("has other members than those that are signed", "container")
    for (name, found), (_, signed) in zip(digests, statement.subjects, strict=True):
        if found != signed:
            raise FieldError("was altered: it does not have the digest that is signed", name)
    if next(iter(members), None) != MANIFEST:
        raise FieldError("is missing, or not the second member", MANIFEST)
    try:
        manifest = decode_manifest(members.pop(MANIFEST))
        validate_manifest(manifest)
    except FieldError as error:
        raise FieldError(f"field {error}" if error.path else error.reason, MANIFEST) from None
    if (manifest.name, manifest.sequence) != (statement.predicate["name"], statement.predicate["sequence"]):
        raise FieldError("is of another name or sequence than the signed statement", MANIFEST)
    return _contents(manifest, members, signers)


def _contents(manifest: Manifest, members: Mapping[str, bytes], signers: tuple[str, ...]) -> _Contents:
    """Give the remaining members to the targets that they belong to."""
    payloads = {target.payload: members.get(target.payload) for target in manifest.targets}
    symbols = {t.build_id: members[symbols_member(t)] for t in manifest.targets if symbols_member(t) in members}
    expected = [*payloads, *(symbols_member(t) for t in manifest.targets if t.build_id in symbols)]
    if list(members) != expected:
        raise FieldError("has members that belong to no target, or are missing or out of order", "container")
    present = {name: content for name, content in payloads.items() if content is not None}
    for index, target in enumerate(manifest.targets):
        content = present[target.payload]
        if len(content) > MAX_PAYLOAD:
            raise FieldError(f"is larger than {MAX_PAYLOAD} bytes", target.payload)
        if len(content) != target.payload_size or _digest(content) != target.payload_sha256:
            raise FieldError(f"is not the payload that targets[{index}] of the manifest describes", target.payload)
    for build_id, content in symbols.items():
        if len(content) > MAX_SYMBOLS:
            raise FieldError(f"are larger than {MAX_SYMBOLS} bytes", f"symbols of {build_id}")
    return _Contents(manifest, present, symbols, signers)


def _check_version(statement: Statement) -> None:
    """Refuse formats of the future before anything else of the statement is looked at."""
    predicate = statement.predicate
    version = predicate.get("formatVersion")
    if type(version) is not int or version < 1:
        raise FieldError("has no format version", STATEMENT)
    if version > FORMAT_VERSION:
        raise _FutureVersion(
            f"needs Midflight >= {_words(predicate.get('requires'))}: made by {_words(predicate.get('builder'))} "
            f"in format {version}, and this Midflight reads format {FORMAT_VERSION}"
        )
    if predicate.keys() != {"formatVersion", "requires", "builder", "name", "sequence"}:
        raise FieldError("does not have the predicate of format 1", STATEMENT)


def _words(value: object) -> str:
    """A string of a future format, made safe to show."""
    return show(value).strip("'\"") if isinstance(value, str) else "(unknown)"


class _FutureVersion(Exception):
    """The file is of a format that this version does not know."""


class _Refusal:
    """Turns the errors of the inner modules into the one documented error, with the file's name and what to do."""

    def __init__(self, path: str | Path, advice: str = _AGAIN) -> None:
        self._path, self._advice = path, advice

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, _FutureVersion):
            raise PatchFileError(f"{self._path} {error}; update Midflight on this machine") from None
        if isinstance(error, FieldError):
            raise PatchFileError(f"{self._path}: {error}; {self._advice}") from None
        if isinstance(error, signature.UntrustedError):
            raise PatchFileError(f"{self._path} {error}; {_TRUST}") from None
        if isinstance(error, container.ContainerError | signature.EnvelopeError):
            raise PatchFileError(f"{self._path} {error}; {self._advice}") from None


def _digest(data: bytes) -> str:
    return sha256(data).hexdigest()


def _read(path: str | Path) -> bytes:
    """The whole file, if it is a regular one of an allowed size."""
    try:
        # Not blocking, so that a named pipe in its place cannot hold us up.
        descriptor = os.open(path, os.O_RDONLY | _BINARY | _CLOSED | _AT_ONCE)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise PatchFileError(f"{path} is not a regular file; give the path of a hotpatch file")
            data = file.read(container.MAX_FILE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "impossible file name"
        raise PatchFileError(f"cannot read hotpatch {path!s}: {reason}; check the path and its permissions") from None
    if len(data) > container.MAX_FILE:
        raise PatchFileError(f"{path} is larger than {container.MAX_FILE} bytes, which no hotpatch is; {_AGAIN}")
    return data


def _write(path: str | Path, data: bytes) -> None:
    """Replace or create a file as a whole: a reader sees the old one or the new one, also after a crash."""
    final = Path(path)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY | _CLOSED, 0o644)
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(final)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        if hasattr(os, "O_DIRECTORY"):  # elsewhere a rename is on disk when it returns
            directory = os.open(final.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "impossible file name"
        raise PatchFileError(f"cannot write hotpatch {path!s}: {reason}; check the directory and its space") from None
