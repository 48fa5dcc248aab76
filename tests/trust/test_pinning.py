"""The pinned connection, with real TLS servers and a real proxy."""

from __future__ import annotations

import time

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from midflight.trust.errors import ServerRefused, TrustError
from midflight.trust.keys import PrivateKey
from midflight.trust.pinning import Pin, PinnedClient, Timeouts, parse_pin, pin_of
from midflight.trust.serverrecord import ServerRecord, decode_record, encode_record
from tests.trust.tls import Handler, certificate, connect_proxy, handler, serve

OTHER = Pin(bytes(32))


def echo(request: Handler) -> None:
    """Answer with method, path, a header and the body."""
    body = request.rfile.read(int(request.headers.get("content-length", 0)))
    request.answer(200, f"{request.command} {request.path} {request.headers.get('x-test')} ".encode() + body, ETag="5")


def test_speaks_with_a_server_that_has_a_pinned_key() -> None:
    context, pin, _ = certificate()
    with serve(handler(echo), context) as url, PinnedClient(url + "/api", [OTHER, pin]) as client:
        reply = client.request("POST", "/check-in?a=b", b"hello", {"x-test": "1"})
        assert (reply.status, reply.body) == (200, b"POST /api/check-in?a=b 1 hello")
        assert reply.headers["etag"] == "5"
        assert client.request("GET", "/again").body == b"GET /api/again None "


def test_a_renewed_certificate_with_the_same_key_is_accepted_and_another_key_is_not() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    _, pin, _ = certificate(key)
    context, _, _ = certificate(key)
    with serve(handler(echo), context) as url, PinnedClient(url, [pin]) as client:
        assert client.request("GET", "/").status == 200
    stranger, _, _ = certificate()
    seen: list[str] = []
    with serve(handler(lambda request: seen.append(request.path)), stranger) as url:
        with PinnedClient(url, [pin, OTHER]) as client, pytest.raises(ServerRefused, match="not pinned") as refused:
            client.request("GET", "/secret")
        assert refused.value.reason == "pin"
    assert seen == [], "nothing may be sent before the key is known"


def test_the_proxy_is_used_and_the_pin_holds_behind_it() -> None:
    context, pin, _ = certificate()
    with serve(handler(echo), context) as url, connect_proxy() as (proxy, asked):
        with PinnedClient(url, [pin], proxy) as client:
            assert client.request("GET", "/through").body == b"GET /through None "
        assert asked == [url.removeprefix("https://")]
        with PinnedClient(url, [OTHER], proxy) as client, pytest.raises(ServerRefused, match="not pinned"):
            client.request("GET", "/through")


def test_refuses_plain_http_redirects_and_endless_answers() -> None:
    context, pin, _ = certificate()
    with pytest.raises(ServerRefused) as refused:
        PinnedClient("http://127.0.0.1", [pin])
    assert refused.value.reason == "insecure"
    with pytest.raises(ServerRefused, match="no proxy that can be used"):
        PinnedClient("https://127.0.0.1", [pin], "https://127.0.0.1:3128")
    with pytest.raises(ServerRefused, match="no pin"):
        PinnedClient("https://127.0.0.1", [])

    def misbehave(request: Handler) -> None:
        if request.path == "/redirect":
            request.answer(302, b"", Location="https://elsewhere.example/")
        else:
            request.answer(200, bytes(1 << 20))

    with serve(handler(misbehave), context) as url, PinnedClient(url, [pin]) as client:
        with pytest.raises(ServerRefused) as refused:
            client.request("GET", "/redirect")
        assert refused.value.reason == "redirect"
        with pytest.raises(ServerRefused) as refused:
            client.request("GET", "/large", max_length=1000)
        assert refused.value.reason == "oversized"


def test_gives_up_on_a_slow_server_and_on_one_that_is_not_there() -> None:
    context, pin, _ = certificate()

    def trickle(request: Handler) -> None:
        request.send_response(200)
        request.send_header("content-length", "1000")
        request.end_headers()
        for _ in range(1000):
            request.wfile.write(b".")
            request.wfile.flush()
            time.sleep(0.05)

    with serve(handler(trickle), context) as url:
        with PinnedClient(url, [pin], timeouts=Timeouts(total=0.2)) as client, pytest.raises(ServerRefused) as refused:
            client.request("GET", "/")
        assert refused.value.reason == "slow"
    with PinnedClient(url, [pin]) as client, pytest.raises(ServerRefused) as refused:
        client.request("GET", "/")
    assert refused.value.reason == "unreachable"


def test_pins_are_read_as_they_are_written() -> None:
    _, pin, pem = certificate()
    assert parse_pin(str(pin)) == pin == pin_of(pem)
    for wrong in ("", "sha256/", "md5/" + "A" * 43 + "=", str(pin)[:-1], str(pin) + "="):
        with pytest.raises(TrustError):
            parse_pin(wrong)


def test_the_servers_record_needs_a_backup_pin() -> None:
    _, pin, _ = certificate()
    key = PrivateKey.generate().public
    record = ServerRecord(("https://patches.example",), (pin, OTHER), (key,))
    assert decode_record(encode_record(record)) == record
    for pins in ((pin,), (pin, pin)):
        with pytest.raises(TrustError, match="pins"):
            encode_record(ServerRecord(record.urls, pins, record.instruction_keys))
    with pytest.raises(TrustError, match="canonical"):
        decode_record(encode_record(record) + b" ")
    with pytest.raises(TrustError, match="urls"):
        encode_record(ServerRecord(("http://patches.example",), record.pins, record.instruction_keys))
