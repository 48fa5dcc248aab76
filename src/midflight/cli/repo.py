"""midflight repo: the repository of content that a fleet gets, signed offline by several people."""

from __future__ import annotations

import argparse

from midflight.cli.output import Output
from midflight.cli.subcommands import add_subcommands

PACKAGE = "repository"
SUBCOMMANDS = {
    "init": "make a repository, and say whose keys count",
    "add": "stage a hotpatch or a baseline",
    "revoke": "stage that content is taken back for ever",
    "server": "stage by which keys devices know their server",
    "rotate": "stage other keys, or another threshold",
    "renew": "stage metadata again that will be over soon",
    "sign": "sign what is staged",
    "publish": "make what is staged visible, in one step",
    "discard": "forget what is staged",
    "status": "show content, keys, what is staged and who must sign, what is over soon",
}

HELP = """\
A repository says which content exists: hotpatches, and baselines (packages that need a restart). It is a TUF repository
(The Update Framework) in a folder. What exists is signed offline, by a threshold of key holders; that it is current is
signed online, by a key that the server has. So a stolen server can withhold content, and never add any.

Every change is staged first, then signed by one holder after the other, here or in copies of the folder, and published
when enough have signed. The folder DIR/public is what devices read; any web server or CDN can serve it."""

EXAMPLES = """\
midflight repo init /srv/repo --root-key ann.pub --root-key bob.pub --root-key eve.pub
midflight repo add /srv/repo nginx.hotpatch --severity critical --cvss 9.8
midflight repo sign /srv/repo --key ann.key
midflight repo sign /srv/repo --key 'hsm:2?label=bob'
midflight repo publish /srv/repo"""

EXIT_STATUS = """\
0  done
1  status: something is over, or soon will be
2  bad usage, bad input, or not enough signatures"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this command."""
    add_subcommands(parser, PACKAGE, SUBCOMMANDS)


def run(args: argparse.Namespace, out: Output) -> int:
    """Carry out the command; returns the exit status."""
    return int(args.module.run(args, out))
