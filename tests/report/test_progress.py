import io
import re

import pytest

from jaxrobust.report import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def plain_lines(seconds_a_step, steps, **kwargs):
    clock, stream = Clock(), io.StringIO()
    with progress(steps, stream=stream, clock=clock, **kwargs) as bar:
        for step in range(1, steps + 1):
            bar.update(step, loss=1 / step)
            clock.now += seconds_a_step
    return stream.getvalue().splitlines()


def test_plain_lines_are_ten_seconds_apart_and_the_last_is_there():
    lines = plain_lines(1.0, 25)
    assert [int(re.match(r"step (\d+)/25", line)[1]) for line in lines] == [1, 11, 21, 25]


def test_slow_steps_have_a_line_each_and_none_twice():
    # The negative control of the test above: with slow steps the same count is another.
    assert [line.split()[1] for line in plain_lines(60.0, 3)] == ["1/3", "2/3", "3/3"]


def test_time_left_does_not_count_compilation():
    clock, stream = Clock(), io.StringIO()
    with progress(100, stream=stream, clock=clock) as bar:
        clock.now = 500.0
        bar.update(10)
        clock.now = 520.0
        bar.update(20)
    first, second = stream.getvalue().splitlines()
    assert "left" not in first
    # 80 steps at 2 seconds each; with the 500 seconds of compilation it would be 2080 seconds.
    assert second.endswith("2 min 40 s left")


def test_accuracies_stay_until_they_are_measured_again():
    clock, stream = Clock(), io.StringIO()
    with progress(100, stream=stream, clock=clock) as bar:
        bar.update(10, loss=0.5, clean=0.9, robust=0.25, images_per_second=12345.6)
        clock.now = 20.0
        bar.update(20, loss=0.4)
    first, second = stream.getvalue().splitlines()
    assert first == "step 10/100  loss 0.5  clean 90.0%  robust 25.0%  images/s 12,346"
    assert second.startswith("step 20/100  loss 0.4  clean 90.0%  robust 25.0%  images/s 12,346")


def test_terminal_has_a_bar_with_the_same_words():
    stream = Terminal()
    with progress(100, 40, stream) as bar:
        bar.update(50, loss=0.5, clean=0.9)
        bar.line("[bold]saved[/bold] \\ here")
        bar.update(100, loss=0.25, clean=0.95)
    text = stream.getvalue()
    assert "━" in text
    assert "100/100" in text
    assert "loss 0.25  clean 95.0%" in text
    # Messages are data, no markup.
    assert "[bold]saved[/bold] \\ here" in text
    assert "━" not in "".join(plain_lines(1.0, 3))


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_quiet_shows_nothing(kind):
    stream = kind()
    with progress(10, stream=stream, quiet=True) as bar:
        bar.update(10, loss=1.0)
        bar.line("hello")
    assert stream.getvalue() == ""


def test_standard_error_is_the_default(capsys):
    with progress(2) as bar:
        bar.update(1)
        bar.line("hello")
    captured = capsys.readouterr()
    assert captured.err == "step 1/2\nhello\n"
    assert captured.out == ""


def test_bar_ends_with_an_error():
    stream = Terminal()

    def fail():
        with progress(10, stream=stream) as bar:
            bar.update(1)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    # The cursor is shown again.
    assert stream.getvalue().rfind("\x1b[?25h") > stream.getvalue().rfind("\x1b[?25l") >= 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "total_steps must be at least 1, got 0"),
        ((10, -1), r"start must be in \[0, 10\], got -1"),
        ((10, 11), r"start must be in \[0, 10\], got 11"),
    ],
)
def test_steps_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        progress(*arguments)
