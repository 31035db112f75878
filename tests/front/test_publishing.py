"""A run on the hub: what is sent, what a second push does, what is refused, and that anyone can evaluate it."""

import json
import re
import shlex
import shutil

import pytest
from helpers.commands import promised
from helpers.hub import TOKEN, local_hub
from huggingface_hub import ModelCard

import robflat_bench as rb
from robflat_bench.core import UsageError

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the hub's client to its own

TO = "hf://me/net"
FILES = {"best.safetensors", "last.safetensors", "outcomes.npz", "record.json", "config.json", "README.md", "tiny.toml"}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with local_hub(monkeypatch, tmp_path) as found:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found


@pytest.fixture
def push(command, finished, tiny):
    """`results push` of the finished run."""

    def pushed(*more, to=TO, run=finished.folder):
        return command("results", "push", run, to, "--protocol", tiny, *more)

    return pushed


def test_a_push_sends_the_run_and_a_second_push_makes_no_commit(hub, push, finished):
    done = push("--json")
    assert done.code == 0, done.err
    model = hub.models["me/net"]
    assert model.private
    assert model.files.keys() == FILES | {".gitattributes"}
    assert model.files["record.json"] == (finished.folder / "record.json").read_bytes()
    for name in ("best", "last"):
        file = finished.folder / "checkpoints" / f"{name}.safetensors"
        assert model.files[f"{name}.safetensors"] == file.read_bytes()
    assert len(model.commits) == 2, "the hub's own first one, and one with everything"
    assert done.document == {
        "model": f"{TO}@{model.head}",
        "url": f"{hub.endpoint}/me/net",
        "private": True,
        "sent": [*done.document["sent"]],
    }
    assert {*done.document["sent"]} == FILES

    hub.asked.clear()
    again = push()
    assert again.code == 0, again.err
    assert hub.written() == []
    assert len(model.commits) == 2
    assert "all files were there already, no commit was made" in again.out
    assert f"robflat-bench evaluate {TO}@{model.head}" in again.out

    hub.asked.clear()
    other = push("--license", "mit", "--json")
    assert other.document["sent"] == ["README.md"]
    assert "license: mit" in model.files["README.md"].decode()
    assert not [line for line in hub.asked if "lfs" in line]
    held = b"".join(model.files.values()) + "".join(one.out + one.err for one in (done, again, other)).encode()
    assert TOKEN.encode() not in held
    assert TOKEN[3:].encode() not in held


def test_a_plan_sends_nothing_and_needs_no_token(hub, push, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    done = push("--plan", "--json")
    assert done.code == 0, done.err
    assert hub.asked == []
    assert done.document["files"].keys() == FILES
    assert done.document["bytes"] == sum(done.document["files"].values())
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    push()
    sent = hub.models["me/net"].files
    assert done.document["files"] == {name: len(sent[name]) for name in FILES}
    assert "README.md" in push("--plan").out


def test_the_card_has_the_numbers_of_the_record_as_the_hub_reads_them(hub, push, finished):
    push("--license", "cc-by-4.0")
    text = hub.models["me/net"].files["README.md"].decode()
    card, record = ModelCard(text).data, finished.record
    assert card.license == "cc-by-4.0"
    found = {(each.metric_args["checkpoint"], each.metric_name): each for each in card.eval_results}
    for point, result in record["results"].items():
        clean = found[point, f"{point}: 1 - clean error, test"]
        assert clean.metric_type == "accuracy"
        assert clean.metric_value == pytest.approx(1 - result["clean_error"], abs=1e-9)
        assert (clean.dataset_type, clean.dataset_split, clean.metric_args["n"]) == ("digits", "test", 30)
        error = result["clean_error"]
        assert clean.metric_args["standard_error"] == pytest.approx((error * (1 - error) / 29) ** 0.5, rel=1e-9)
        for name, measured in result["measures"].items():
            (shown,) = [
                each
                for each in found.values()
                if each.metric_args.get("of") == name and each.metric_args["checkpoint"] == point
            ]
            assert (shown.metric_type, shown.metric_value) == (
                name.partition("(")[0],
                pytest.approx(measured["value"], rel=1e-9),
            )
            assert shown.metric_args["epsilon"] == 0.2
        for attack, errors in result["robust_error"].items():
            values = [each.metric_value for each in found.values() if each.metric_args.get("of") == attack]
            assert pytest.approx(1 - errors["test"], abs=1e-9) in values
    assert record["protocol"]["hash"] in text
    assert record["dataset"]["checksum"] in text
    assert "| n |" in text
    assert "epsilon 0.2" in text
    assert f"{100 * record['results']['last']['clean_error']:.1f} ±" in text
    assert str(finished.store) not in text


def test_anyone_evaluates_it_with_the_command_of_the_card(hub, push, command, finished, tiny, tmp_path, monkeypatch):
    push("--public")
    model = hub.models["me/net"]
    assert not model.private
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(tiny, "tiny.toml")
    lines = re.findall(r"(?m)^robflat-bench (evaluate .*)$", model.files["README.md"].decode())
    assert [shlex.split(line)[1] for line in lines] == [TO, f"{TO}/best.safetensors"]
    done = command(*shlex.split(lines[0]), "--json")
    assert done.code == 0, done.err
    assert f"{TO}@{model.head}/last.safetensors: 0.0 MB from the hub" in done.err
    assert done.document["provenance"]["hub"] == f"{TO}@{model.head}/last.safetensors"
    expected, result = promised(finished.record)["results"]["last"], done.document["results"]["last"]
    for name in ("weights", "clean_error", "robust_error", "robust_loss", "gap", "flags"):
        assert result[name] == expected[name]
    assert {name: each["value"] for name, each in result["measures"].items()} == {
        name: each["value"] for name, each in expected["measures"].items()
    }
    again = rb.evaluate(TO, protocol="tiny.toml", progress=False)
    assert again.record.key == done.document["key"]
    hub.broken["GET"] = hub.broken["HEAD"] = 503
    without = command(*shlex.split(lines[0]), "--json")
    assert without.document == done.document
    assert "there is no network; from the cache" in without.err


def test_a_public_model_is_written_to_only_when_asked(hub, push):
    push("--public")
    hub.asked.clear()
    assert "hf://me/net is public, and a push shows the run to everyone; add --public" in push().complaint
    assert hub.written() == []
    assert push("--public").code == 0


def test_another_model_is_not_written_over(hub, push):
    hub.add("me/net", {"README.md": b"mine", ".gitattributes": b""})
    assert "hf://me/net holds another model; name a new one, or write over it with --replace" in push().complaint
    assert hub.written() == []
    done = push("--replace")
    assert done.code == 0, done.err
    assert hub.models["me/net"].files["README.md"] != b"mine"


@pytest.mark.parametrize(
    ("change", "to", "code", "says"),
    [
        ("no token", TO, 2, "no token of the hub is known here.*hf auth login"),
        ("a wrong token", TO, 2, "does not accept your token"),
        ("", "hf://you/net", 2, "your token may not write to you/net"),
        ("GET /api", TO, 1, r"busy \(503\); type the same command again later"),
        ("POST /api/models/me/net/commit", TO, 1, r"busy \(503\)"),
        ("PUT /lfs", TO, 1, r"busy \(503\)"),
        ("offline", TO, 1, "HF_HUB_OFFLINE forbids network access"),
        ("no hub", TO, 1, "the hub cannot be reached .*type the same command again with a network"),
        ("", "hf://me/net@main", 2, "write hf://me/net$"),
        ("", "me/net", 2, "write hf://OWNER/NAME"),
    ],
)
def test_what_goes_wrong_is_one_line_with_the_next_command(hub, push, monkeypatch, change, to, code, says):
    if change == "no token":
        monkeypatch.delenv("HF_TOKEN")
    elif change == "a wrong token":
        monkeypatch.setenv("HF_TOKEN", TOKEN + "x")
    elif change == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    elif change == "no hub":
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    elif change:
        hub.broken[change] = 503
    done = push(to=to)
    assert (done.code, done.out) == (code, "")
    line = done.err.splitlines()[-1]
    assert re.search(says, line), done.err
    assert line.isprintable()
    assert TOKEN not in done.err
    if change.startswith(("POST", "PUT")):
        hub.broken.clear()
        assert push().code == 0, "what was sent stays, and the same command ends the work"
        assert hub.models["me/net"].files.keys() > FILES


def test_weights_of_another_network_are_not_sent(hub, push, finished_copy):
    checkpoints = finished_copy.folder / "checkpoints"
    shutil.copyfile(checkpoints / "initial.safetensors", checkpoints / "last.safetensors")
    assert "last.safetensors is not of this record" in push(run=finished_copy.folder).complaint
    (checkpoints / "last.safetensors").unlink()
    assert re.search(r"there is no .*last.safetensors; train the run again", push(run=finished_copy.folder).complaint)
    assert hub.asked == []


def test_a_record_with_a_token_in_it_is_not_sent(hub, push, finished_copy):
    file = finished_copy.folder / "record.json"
    record = json.loads(file.read_text())
    record["environment"]["plugins"] = {"careless": f"token={TOKEN}"}
    file.write_text(json.dumps(record))
    done = push(run=finished_copy.folder)
    assert "would hold what looks like a token" in done.complaint
    assert TOKEN not in done.complaint
    assert hub.asked == []


def test_a_run_of_a_protocol_file_needs_the_file(hub, command, finished):
    said = command("results", "push", finished.folder, TO).complaint
    assert "tiny 1.0 is not installed here; pass its file: --protocol FILE.toml" in said
    said = command("results", "push", finished.folder, TO, "--protocol", "digits-linf").complaint
    assert "but digits-linf has the hash" in said


def test_push_from_python_is_the_commands(hub, finished, tiny):
    done = rb.push(finished.folder, TO, protocol=str(tiny))
    assert isinstance(done, rb.Pushed)
    assert done.model == f"{TO}@{hub.models['me/net'].head}"
    assert rb.push(finished.key, TO, protocol=str(tiny), store=finished.store).sent == ()
    with pytest.raises(UsageError, match="public='yes' is no value"):
        rb.push(finished.folder, TO, public="yes")
