"""openssl as Debian ships it: libcrypto has 11,000 functions, and finds its ciphers through tables."""

from __future__ import annotations

from tests.corpus.model import Edit, HostProgram, Patched, Patches, Shipped, ShippedCase, library

CRYPTO = Shipped(
    "openssl",
    "libssl3",
    "3.0.17-1~deb12u2",
    "libcrypto.so.3",
    # a third of what the package builds: it makes every object for static libraries as well
    "export DEB_BUILD_MAINT_OPTIONS='hardening=+all future=+lfs';"
    ' export CFLAGS="$(dpkg-buildflags --get CFLAGS)" CPPFLAGS="$(dpkg-buildflags --get CPPFLAGS)"'
    ' LDFLAGS="$(dpkg-buildflags --get LDFLAGS)"; [ -e build_shared/Makefile ] || debian/rules'
    " override_dh_auto_configure; make -C build_shared -j2 build_generated && make -C build_shared -j2 libcrypto.so.3",
    "build_shared/libcrypto.so.3",
)
NEWER = "3.0.20-1~deb12u2"

OCB = "Apply-the-buffered-IV-on-the-AES-OCB-EVP_Cipher-path.patch"
SIV = "Fix-handling-of-empty-ciphertext-messages-in-AES-SIV.patch"


def _crypto(host: str, *functions: str) -> Patched:
    return Patched(library, frozenset(functions), HostProgram(host, options=("-lcrypto",)))


CASES = (
    ShippedCase(
        CRYPTO,
        "CVE-2026-45445",
        Patches((OCB,), NEWER),
        # static, and reached through the tables of five ciphers alone
        _crypto("openssl_ocb.c", "aes_ocb_cipher"),
        reviewed={"MF170:aes_ocb_cipher": "ERR_new takes the next entry of the error queue that a thread has anyway."},
    ),
    ShippedCase(
        CRYPTO,
        "CVE-2026-45446",
        Patches((SIV,), NEWER),
        _crypto("openssl_siv.c", "aes_siv_set_ctx_params"),
    ),
    ShippedCase(
        CRYPTO,
        "CVE-2026-42770",
        # Debian's patch is for a source that was formatted anew in the meantime
        (
            Edit(
                "providers/implementations/exchange/dh_exch.c",
                "ossl_ffc_params_cmp(dhparams_priv, dhparams_peer, 1)",
                "ossl_ffc_params_cmp(dhparams_priv, dhparams_peer, dhparams_priv->q == NULL)",
            ),
        ),
        # dh_match_params is inlined in its caller
        _crypto("openssl_dhx.c", "dh_set_peer"),
        reviewed={"MF171:dh_match_params": "Asks whether two keys have the same parameters: nothing is ordered."},
    ),
)
