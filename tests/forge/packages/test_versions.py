"""Version numbers: dpkg itself is the judge."""

from __future__ import annotations

import subprocess

from hypothesis import given, settings
from hypothesis import strategies as st

from midflight.forge.packages.versions import compare, file_name, from_file_name, upstream, without_binary_only

_PART = st.text("0129abz.+~", max_size=6)
VERSIONS = st.builds(
    lambda epoch, body, revision: f"{epoch}1{body}{revision}",
    st.sampled_from(["", "0:", "5:"]),
    st.text("0129abz.+~-", max_size=6),
    st.one_of(st.just(""), _PART.map(lambda text: f"-1{text}")),
).filter(lambda version: not version.endswith("-"))


@settings(max_examples=60, deadline=None)
@given(VERSIONS, VERSIONS)
def test_order_is_that_of_dpkg(left: str, right: str) -> None:
    relation = {-1: "lt", 0: "eq", 1: "gt"}[(order := compare(left, right)) and (1 if order > 0 else -1)]
    done = subprocess.run(["dpkg", "--compare-versions", left, relation, right], check=False)
    assert done.returncode == 0, f"{left} {relation} {right}"


def test_parts() -> None:
    assert upstream("5:7.0.15-1~deb12u10") == "7.0.15"
    assert upstream("2.9.14+dfsg-1.3~deb12u6") == "2.9.14+dfsg"
    assert upstream("20230311") == "20230311"
    assert without_binary_only("1.10.0-3+b1") == "1.10.0-3"
    assert without_binary_only("2.5.0-1+deb12u1") == "2.5.0-1+deb12u1"
    assert from_file_name(file_name("5:7.0.15-1")) == "5:7.0.15-1"
