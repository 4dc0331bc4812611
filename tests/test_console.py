"""No secret is ever shown; progress is plain lines in a file."""

import logging
import sys

import pytest

from pressroom import console
from pressroom.console import Progress, UserError, entry, human_seconds, redact


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET /v1/news?access_key=abc123&limit=1", "GET /v1/news?access_key=<redacted>&limit=1"),
        ("token hf_abcdefghijklmnopqrst!", "token <redacted>!"),
        ("https://user:pass@host/x", "https://<redacted>host/x"),
    ],
)
def test_shapes_of_secrets(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_values_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDIASTACK_ACCESS_KEY", "0123456789abcdef")
    assert redact("key 0123456789abcdef.") == "key <MEDIASTACK_ACCESS_KEY>."


@pytest.mark.parametrize(
    "shown",
    ["a+b/c=d&e f9", "a%2Bb%2Fc%3Dd%26e%20f9", "a%2bb/c%3dd%26e%20f9", r"a+b\/c=d\u0026e f9"],
)
def test_values_as_urls_and_json_write_them(monkeypatch: pytest.MonkeyPatch, shown: str) -> None:
    monkeypatch.setenv("MEDIASTACK_ACCESS_KEY", "a+b/c=d&e f9")
    assert redact(f"key {shown}.") == "key <MEDIASTACK_ACCESS_KEY>."


def test_logs_and_tracebacks_are_redacted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret-value-1")
    root = logging.getLogger()
    before = root.handlers[:], root.level
    console.set_up_logging()
    try:
        raise ValueError("secret-value-1")
    except ValueError:
        console.log.exception("with secret-value-1")
    finally:
        root.handlers[:], root.level = before
    shown = capsys.readouterr().err
    assert "ValueError" in shown
    assert "secret-value-1" not in shown


def test_a_users_mistake_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise UserError("no such file")

    before = logging.getLogger().handlers[:]
    with pytest.raises(SystemExit) as caught:
        entry(command)
    logging.getLogger().handlers[:] = before
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: no such file\n"


def test_progress_in_a_file_is_plain_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "stderr", open("/dev/null", "w"))  # noqa: PTH123, SIM115
    with caplog.at_level(logging.INFO, "pressroom"), Progress("train", 3, "step") as progress:
        for _ in range(3):
            progress.advance(loss="1.5")
    assert [record.getMessage() for record in caplog.records] == [
        "train 3/3 step  loss 1.5  0:00 left"
    ]


def test_human_seconds() -> None:
    assert [human_seconds(s) for s in (5, 75.2, 3725)] == ["0:05", "1:15", "1:02:05"]


def test_what_drives_a_terminal_is_shown_by_its_code() -> None:
    told = console.harmless("a\x1b[31mb\x07\u202e\tc\n\u65e5")
    assert told == "a\\x1b[31mb\\x07\\u202e\tc\n\u65e5"


def test_a_full_gpu_is_told_without_a_traceback(capsys: pytest.CaptureFixture) -> None:
    class OutOfMemoryError(RuntimeError):
        """As torch calls its own."""

    def command() -> None:
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")

    with pytest.raises(SystemExit) as ended:
        console.entry(command)
    told = capsys.readouterr().err
    assert ended.value.code == 1
    assert "the GPU's memory is full. In training batch.micro_batch_size" in told
    assert "(CUDA out of memory. Tried to allocate 2.00 GiB.)" in told
    assert "Traceback" not in told
