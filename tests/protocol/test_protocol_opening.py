# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Links by URL: what cannot be opened is one sentence that says what to write instead."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.errors import LinkUnavailableError, UsageError
from protocol.transport.issuer import IssuerLink
from protocol.transport.memory import MemoryLink, MemoryPort
from protocol.transport.opening import LinkUrl, open_card_end, open_terminal_end
from protocol.transport.socket_link import Address, SocketLink, SocketPort

_WRONG = [
    "",
    ":",
    "socket",
    "memory",
    "socket:",
    "socket:name",
    "socket:127.0.0.1",
    "socket:127.0.0.1:",
    "socket::35963",
    "socket:127.0.0.1:0",
    "socket:127.0.0.1:65536",
    "socket:127.0.0.1:-1",
    "socket:127.0.0.1:http",
    "socket:127.0.0.1:35963?listen&connect",
    "socket:127.0.0.1:35963?fast",
    "socket:127.0.0.1:35963?listen=1",
    "socket:127.0.0.1:35963?short&Listen",
    "memory:here?loud",
    "SOCKET:127.0.0.1:35963",
    "/path/of/socket",
    "ftp://127.0.0.1/35963",
    "127.0.0.1:35963",
]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with contextlib.chdir(tmp_path):  # a Unix path has at most 107 bytes
        yield tmp_path


@pytest.mark.parametrize("url", _WRONG)
def test_wrong_url_is_a_usage_error_with_a_sentence_at_both_ends(url: str) -> None:
    for open_end in (open_terminal_end, open_card_end):
        with pytest.raises(UsageError) as caught:
            open_end(url)
        assert len(str(caught.value).split()) >= 5
        assert "\n" not in str(caught.value)


def test_error_says_what_to_write_instead() -> None:
    with pytest.raises(UsageError, match="write socket:/path"):
        open_terminal_end("ftp:here")
    with pytest.raises(UsageError, match="'fast' is not known; there are listen, connect, short"):
        open_terminal_end("memory:here?fast")


@pytest.mark.parametrize(
    ("url", "parsed"),
    [
        ("memory:here", LinkUrl("memory", "here", frozenset())),
        ("socket:/a/b?short", LinkUrl("socket", "/a/b", frozenset({"short"}))),
        ("socket:127.0.0.1:1?connect&short", LinkUrl("socket", "127.0.0.1:1", frozenset({"connect", "short"}))),
        ("socket:/a?", LinkUrl("socket", "/a", frozenset())),
    ],
)
def test_url_is_taken_apart(url: str, parsed: LinkUrl) -> None:
    assert LinkUrl.parse(url) == parsed
    assert parsed.short is ("short" in parsed.options)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("/a/b", Address(Path("/a/b"), "", 0, True)),
        ("./b", Address(Path("b"), "", 0, True)),
        ("127.0.0.1:35963", Address(None, "127.0.0.1", 35963, True)),
        ("localhost:65535", Address(None, "localhost", 65535, True)),
    ],
)
def test_address_is_a_path_or_host_and_port(text: str, address: Address) -> None:
    assert Address.parse(text, listen=True) == address


def test_address_prints_as_it_was_written() -> None:
    assert str(Address.parse("127.0.0.1:35963", listen=False)) == "127.0.0.1:35963"
    assert str(Address.parse("/a/b", listen=False)) == "/a/b"


def test_ends_are_of_the_scheme(folder: Path) -> None:
    with open_terminal_end("memory:here") as memory, open_terminal_end("socket:./s?listen") as listening:
        assert isinstance(memory, MemoryLink)
        assert isinstance(listening, SocketLink)
    assert isinstance(open_card_end("memory:here"), MemoryPort)
    port = open_card_end("socket:./s")
    assert isinstance(port, SocketPort)
    port.close()


def test_card_listens_and_terminal_connects_unless_told_otherwise(folder: Path) -> None:
    path = folder / "s"
    open_terminal_end("socket:./s").close()
    open_card_end("socket:./s?connect").close()
    assert not path.exists()
    port = open_card_end("socket:./s")
    assert path.is_socket()
    port.close()
    link = open_terminal_end("socket:./s?listen")
    assert path.is_socket()
    link.close()
    assert not path.exists()


def test_path_in_a_missing_folder_is_a_sentence(folder: Path) -> None:
    with pytest.raises(LinkUnavailableError, match=r"cannot listen at missing/s: No such file"):
        open_card_end("socket:missing/s")


def test_path_of_a_file_is_a_sentence_and_the_file_stays(folder: Path) -> None:
    (folder / "file").write_text("precious")
    with pytest.raises(LinkUnavailableError, match="cannot listen at file, which is a file; name another LINK"):
        open_card_end("socket:./file")
    assert (folder / "file").read_text() == "precious"


@pytest.mark.parametrize(("name", "what"), [("file", "a file"), (".", "a folder")])
def test_path_that_is_no_socket_is_no_card_that_may_still_come(folder: Path, name: str, what: str) -> None:
    (folder / "file").write_text("precious")
    with open_terminal_end(f"socket:./{name}") as link, pytest.raises(LinkUnavailableError, match=f"is {what}, not a"):
        link.activate(30.0)


def test_folder_is_nothing_to_listen_at(folder: Path) -> None:
    with pytest.raises(LinkUnavailableError, match="which is a folder; name another LINK"):
        open_card_end("socket:./")


def test_listener_that_takes_nobody_now_keeps_its_socket(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, contextlib.ExitStack() as waiting:
        server.bind("s")
        server.listen(0)
        with contextlib.suppress(BlockingIOError):
            for _ in range(10):
                client = waiting.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect("s")
        with pytest.raises(LinkUnavailableError, match="already listening at s; end it, or name another LINK"):
            open_card_end("socket:./s")
    assert (folder / "s").is_socket()


def test_nfc_without_a_device_is_a_usage_error() -> None:
    for open_end in (open_terminal_end, open_card_end):
        with pytest.raises(UsageError, match="names no device; write nfc:usb"):
            open_end("nfc:")


def test_path_too_long_for_a_socket_is_a_sentence(folder: Path) -> None:
    with pytest.raises(LinkUnavailableError, match="too long"):
        open_card_end("socket:./" + "s" * 200)


def test_port_that_is_taken_is_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            LinkUnavailableError, match=f"cannot listen at 127.0.0.1:{port}: .*; name another LINK, or end"
        ):
            open_card_end(f"socket:127.0.0.1:{port}")


@pytest.mark.parametrize("url", ["", "embedded", "embedded:", "embeded:/folder", "/folder", "socket:/folder"])
def test_wrong_issuer_is_a_usage_error_with_a_sentence(url: str) -> None:
    with pytest.raises(UsageError, match="is no issuer; write embedded:DIR"):
        IssuerLink(url)
