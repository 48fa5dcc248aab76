"""The signed statement of a hotpatch: an in-toto Statement v1 in a DSSE v1 envelope, signed with Ed25519.

The statement names the sha256 of every other member. Keys come in through two small protocols, so that this room needs
no cryptography library: :mod:`midflight.trust.keys` has the keys. Sources: DSSE protocol and envelope v1.0.2
(secure-systems-lab/dsse), in-toto Attestation Framework Statement v1, RFC 8032 (Ed25519).
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from midflight.patch import strictjson

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:midflight:hotpatch"
MAX_SIGNATURES = 16

_KEY_ID = re.compile(r"[0-9a-f]{64}")
_SIGNATURE_SIZE = 64  # RFC 8032 section 5.1.6


class PublicKey(Protocol):
    """Whom we trust."""

    @property
    def key_id(self) -> str:
        """64 lower-case hex digits."""

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Whether the signature over the message was made with this key."""


class Signer(Protocol):
    """Who signs."""

    @property
    def key_id(self) -> str:
        """64 lower-case hex digits."""

    def sign(self, message: bytes) -> bytes:
        """The Ed25519 signature (64 bytes) over the message."""


class EnvelopeError(ValueError):
    """The envelope or its statement is malformed, or no trusted key signed it; ``str()`` says what is wrong."""


class UntrustedError(EnvelopeError):
    """Well formed, but no trusted key signed it."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """A DSSE envelope: the statement's bytes, and signatures by key id, in the order of the key ids.

    ``kind`` is its payload type, which is signed too: what was signed as one thing is never taken for another.
    """

    payload: bytes
    signatures: Mapping[str, bytes]
    kind: str = PAYLOAD_TYPE

    def signed_by(self, signer: Signer) -> Envelope:
        """The same envelope with one more signature (or the same one again)."""
        signatures = {
            **self.signatures,
            signer.key_id: signer.sign(pre_authentication_encoding(self.payload, self.kind)),
        }
        return Envelope(self.payload, dict(sorted(signatures.items())), self.kind)

    def verified_by(self, trusted: Iterable[PublicKey]) -> tuple[str, ...]:
        """The trusted keys (by id) that signed this envelope; one is enough.

        Raises:
            UntrustedError: there is none.
            EnvelopeError: a signature that claims to be by a trusted key is not.
        """
        message = pre_authentication_encoding(self.payload, self.kind)
        signers: list[str] = []
        for key in {key.key_id: key for key in trusted}.values():
            signature = self.signatures.get(key.key_id)
            if signature is None:
                continue
            if not key.verify(signature, message):
                raise EnvelopeError(f"was altered: the signature by key {key.key_id[:16]}… does not fit its contents")
            signers.append(key.key_id)
        if not signers:
            if not self.signatures:
                raise UntrustedError("is not signed")
            names = ", ".join(f"{key_id[:16]}…" for key_id in list(self.signatures)[:4])
            raise UntrustedError(f"is signed by no key that is trusted here (signed by {names})")
        return tuple(sorted(signers))


def pre_authentication_encoding(payload: bytes, kind: str = PAYLOAD_TYPE) -> bytes:
    """What is signed: PAE(type, body) of the DSSE protocol."""
    name = kind.encode()
    return b"DSSEv1 %d %b %d %b" % (len(name), name, len(payload), payload)


def encode_envelope(envelope: Envelope) -> bytes:
    """The one encoding of an envelope that is accepted again."""
    document = {
        "payload": _base64(envelope.payload),
        "payloadType": envelope.kind,
        "signatures": [{"keyid": key_id, "sig": _base64(sig)} for key_id, sig in envelope.signatures.items()],
    }
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def decode_envelope(data: bytes, kind: str = PAYLOAD_TYPE) -> Envelope:
    """Read an envelope around a payload of that type. Nothing in it is verified by that.

    Raises:
        EnvelopeError: it is malformed, of another type, or not encoded as :func:`encode_envelope` does it.
    """
    document = _load(data, "envelope")
    if not isinstance(document, dict) or document.keys() != {"payload", "payloadType", "signatures"}:
        raise EnvelopeError("has an envelope that is not of the DSSE form")
    if document["payloadType"] != kind:
        raise EnvelopeError(f"has an envelope around something else than {kind}")
    entries = document["signatures"]
    if not isinstance(entries, list) or len(entries) > MAX_SIGNATURES:
        raise EnvelopeError(f"has an envelope without a list of at most {MAX_SIGNATURES} signatures")
    signatures: dict[str, bytes] = {}
    for entry in entries:
        if not isinstance(entry, dict) or entry.keys() != {"keyid", "sig"}:
            raise EnvelopeError("has a signature that is not of the DSSE form")
        key_id = entry["keyid"]
        if not isinstance(key_id, str) or not _KEY_ID.fullmatch(key_id):
            raise EnvelopeError("has a signature whose key id is not 64 hex digits")
        signatures[key_id] = _unbase64(entry["sig"])
        if len(signatures[key_id]) != _SIGNATURE_SIZE:
            raise EnvelopeError(f"has a signature that is not {_SIGNATURE_SIZE} bytes long")
    envelope = Envelope(_unbase64(document["payload"]), signatures, kind)
    # One encoding only: no second spelling of the same signatures, no duplicates, nothing hidden in white space.
    if list(signatures) != sorted(signatures) or encode_envelope(envelope) != data:
        raise EnvelopeError("has an envelope that is not in its canonical form")
    return envelope


@dataclass(frozen=True, slots=True)
class Statement:
    """What is signed: member names with their sha256 (hex), in file order, and a predicate of ours."""

    subjects: tuple[tuple[str, str], ...]
    predicate: Mapping[str, object]


def encode_statement(subjects: Sequence[tuple[str, str]], predicate: Mapping[str, object]) -> bytes:
    """The in-toto statement as bytes."""
    document = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in subjects],
        "predicateType": PREDICATE_TYPE,
        "predicate": dict(predicate),
    }
    return json.dumps(document, separators=(",", ":")).encode()


def decode_statement(data: bytes) -> Statement:
    """Read a statement.

    Raises:
        EnvelopeError: it is not an in-toto Statement v1 with our predicate type.
    """
    document = _load(data, "statement")
    if not isinstance(document, dict) or document.keys() != {"_type", "subject", "predicateType", "predicate"}:
        raise EnvelopeError("has a statement that is not of the in-toto form")
    if document["_type"] != STATEMENT_TYPE or document["predicateType"] != PREDICATE_TYPE:
        raise EnvelopeError("has a signed statement about something else than a hotpatch")
    predicate, entries = document["predicate"], document["subject"]
    if not isinstance(predicate, dict) or not isinstance(entries, list):
        raise EnvelopeError("has a statement that is not of the in-toto form")
    subjects: list[tuple[str, str]] = []
    for entry in entries:
        match entry:
            case {"name": str(name), "digest": {"sha256": str(digest), **other}, **more} if not other and not more:
                subjects.append((name, digest))
            case _:
                raise EnvelopeError("has a statement with a subject that is not a name and a sha256")
    return Statement(tuple(subjects), predicate)


def _load(data: bytes, what: str) -> object:
    try:
        return strictjson.loads(data)
    except strictjson.StrictJSONError as error:
        raise EnvelopeError(f"has a malformed {what}: it {error}") from None


def _base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()


def _unbase64(text: object) -> bytes:
    try:
        if not isinstance(text, str):
            raise ValueError
        return binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except ValueError:
        raise EnvelopeError("has an envelope with malformed base64") from None
