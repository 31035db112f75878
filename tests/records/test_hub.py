"""Names of models on the hub, and its errors as lines with the next thing to type."""

import pytest

from robflat_bench.core import RunFailed, UsageError
from robflat_bench.records.hub import HubName, Unreachable, hub_errors

COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hf://me/net", ("me", "net", "", "")),
        ("hf://me/net@main", ("me", "net", "main", "")),
        (f"hf://me/net-1.0@{COMMIT}/last.safetensors", ("me", "net-1.0", COMMIT, "last.safetensors")),
        ("hf://me/net@refs/pr/3/a/b.safetensors", ("me", "net", "refs/pr/3", "a/b.safetensors")),
        ("hf://me/net/runs/epoch=3.safetensors", ("me", "net", "", "runs/epoch=3.safetensors")),
    ],
)
def test_a_name_is_read_and_written_back(text, parts):
    name = HubName.parse(text)
    assert (name.owner, name.name, name.revision, name.file) == parts
    assert str(name) == text
    assert name.pinned == (COMMIT in text)


@pytest.mark.parametrize(
    "text",
    [
        *("hf://me", "hf://me/", "hf://me/net/", "hf://../net", "hf://me/a..b", "hf://me/net\n", "hf://me/net@"),
        *("hf://me/\x1b[2J", "hf://me/net@a b", "hf://me/n\u00e9t", "hf://" + "a" * 97 + "/b"),
        *("hf://me/net/../x.safetensors", "hf://me/net/a/../../x.safetensors", "hf://me/net//x.safetensors"),
        *("hf://me/net/.x.safetensors", "hf://me/net/x.bin", "hf://me/net/x.pt", "hf://me/net/a%2e.safetensors"),
        "hf://me/net/" + "a/" * 100 + "x.safetensors",
    ],
)
def test_another_name_is_refused_with_the_form_to_write(text):
    with pytest.raises(UsageError, match=r"write hf://OWNER/NAME|is no \.safetensors file") as told:
        HubName.parse(text)
    assert str(told.value).isprintable()


NAME = HubName("me", "net", "v1")


def answered(status, code="", said="\x1b[2Jno"):
    """The error that the hub's client makes of an answer."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import hf_raise_for_status

    session = get_session()
    request = session.build_request("GET", "https://hub.invalid/api/models/me/net")
    kind = type(session.send).__name__ and __import__(type(session).__module__.partition(".")[0]).Response
    response = kind(status, request=request, headers={"X-Error-Code": code, "X-Error-Message": said})
    try:
        hf_raise_for_status(response)
    except Exception as error:
        return error
    raise AssertionError(status)


@pytest.mark.parametrize(
    ("asked", "status", "code", "kind", "says"),
    [
        ("read", 401, "", UsageError, "no model me/net on the hub, or it is private.*hf auth login"),
        ("read", 404, "RepoNotFound", UsageError, "no model me/net"),
        ("read", 404, "RevisionNotFound", UsageError, "me/net has no revision 'v1'"),
        ("read", 404, "EntryNotFound", UsageError, "me/net has no such file"),
        ("read", 403, "GatedRepo", UsageError, "ask for access on its page"),
        ("write", 401, "", UsageError, "does not accept your token.*hf auth login"),
        ("write", 403, "", UsageError, "may not write to me/net.*hf auth login"),
        ("write", 404, "RepoNotFound", UsageError, "the hub has no 'me'.*hf auth whoami"),
        ("write", 412, "", RunFailed, "changed meanwhile.*same command again"),
        ("write", 400, "", UsageError, r"the hub refuses me/net \(400: "),
        ("write", 429, "", Unreachable, r"busy \(429\); type the same command again later"),
        ("read", 503, "", Unreachable, r"busy \(503\); type the same command again later"),
    ],
)
def test_an_answer_of_the_hub_is_one_line_with_the_next_thing_to_type(asked, status, code, kind, says):
    with pytest.raises(kind, match=says) as told, hub_errors(NAME, asked):
        raise answered(status, code)
    assert str(told.value).isprintable()
    assert told.value.__suppress_context__, "the client's own error holds the request, and its headers the token"


def test_an_upload_that_fails_says_what_the_hub_answered():
    with pytest.raises(UsageError, match="may not write"), hub_errors(NAME, "write"):
        raise RuntimeError("Error while uploading") from answered(403)


def test_no_network_is_said():
    with pytest.raises(Unreachable, match=r"cannot be reached \(ConnectionError: down\).*with a network"):  # noqa: SIM117
        with hub_errors(NAME, "read"):
            raise ConnectionError("down")
