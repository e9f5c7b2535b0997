"""Names in figures are drawn as they are, in whatever script, and no name stops a training."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from quartet import lettering
from quartet.callbacks import data_report, figures
from quartet.report import figures as report_figures

NAMES = [
    "$", "$$", "$_$", "$^$", "$#$", "$1%$2", r"cost_$\frac$", "$0-$10", "US$ & A$", "100$ - 200$", r"\alpha", "a_b^c", "{x}",
    "%d", "疾病", "日本語", "한국어", "😀 emoji", "עברית", "العربية", "ไทย", "हिन्दी", "é", "𝕏",
    "\u200f", "\ufffd", "a\nb", "\x1b[31m", "", " ",
]  # fmt: skip


def drawings(classes: tuple[str, ...]):
    n = len(classes)
    target = np.arange(3 * n) % n
    probabilities = np.random.default_rng(0).dirichlet(np.ones(n), 3 * n)
    yield figures.confusion_figure(target, probabilities.argmax(1), classes, classes[0])
    yield figures.curves_figure(probabilities, target, classes, classes[0])
    yield figures.images_figure(np.zeros((n, 4, 4, 1), np.uint8), list(classes), classes[0])
    yield figures.regression_figure(np.arange(9.0), np.arange(9.0) ** 2, classes[0])
    columns = [{"column": name, "kind": "numeric", "missing": 0.5} for name in classes]
    counts = {name: {"train": 3, "val": 1} for name in classes}
    histograms = {classes[0]: {"edges": [0, 1, 2], "counts": {"train": [1, 2]}}}
    parts = {"train": {"samples": 3}, classes[0]: {classes[-1]: 3}}
    yield data_report.report_figure(
        {"parts": parts, "classes": counts, "columns": columns, "histograms": histograms, "notes": list(classes)}
    )


def test_every_name_is_drawn_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in drawings(tuple(NAMES)):
            figures.render(figure)


@pytest.mark.parametrize("name", ["$0-$10", "$$", "$x$", r"\frac"])
def test_a_dollar_is_drawn_as_one(name):
    """The same picture as of the letters one by one, each of which begins no formula."""

    def picture(*words: str):
        figure = lettering.new_figure(figsize=(3, 1), dpi=100)
        renderer, x = FigureCanvasAgg(figure).get_renderer(), 0.1
        for word in words:
            text = figure.text(x, 0.5, word)
            x += text.get_window_extent(renderer).width / 300
        return figures.render(figure)

    whole, letters = picture(name), picture(*name)
    assert (whole < 255).any() and (letters < 255).any()
    ink = [np.flatnonzero((p < 128).any((0, 2))) for p in (whole, letters)]
    assert abs(np.ptp(ink[0]) - np.ptp(ink[1])) <= 3, "as wide"


def test_reports_draw_any_setting(tmp_path):
    drawn, axes = report_figures.figure(2.0)
    axes.set_yticks(range(len(NAMES)), NAMES)
    axes.set_title("$a_$ " + "".join(NAMES))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lettering.save(drawn, tmp_path / "figures" / "x.png")
        assert (tmp_path / "figures" / "x.png").stat().st_size > 1000


def test_an_installed_font_is_found_for_letters_that_matplotlib_lacks(monkeypatch):
    """matplotlib brings Latin, Greek, Cyrillic, Hebrew, Arabic; here another of its fonts plays the installed one."""
    from matplotlib.font_manager import findfont

    mono = findfont("DejaVu Sans Mono")
    letters = {None: frozenset(map(ord, "ab")), mono: frozenset(map(ord, "病"))}
    monkeypatch.setattr(lettering, "letters", lambda path: letters.get(path, frozenset()))
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: ["/no/such.ttf", mono])
    lettering.fallback_fonts.cache_clear()
    figure = lettering.new_figure()
    one, two = figure.text(0, 0, "ab"), figure.text(0, 0, "a病")
    with lettering.lettered(figure):
        pass
    lettering.fallback_fonts.cache_clear()
    assert "DejaVu Sans Mono" in two.get_fontfamily() and "DejaVu Sans Mono" not in one.get_fontfamily()


def test_a_figure_that_cannot_be_drawn_does_not_end_a_training(compose, monkeypatch, capsys, outputs):
    from quartet.commands.train import create_and_train

    def fail(*arguments):
        raise TypeError("no such\npicture")

    monkeypatch.setattr(figures, "confusion_figure", fail)
    monkeypatch.setattr(data_report, "report_figure", fail)
    words = "model=mlp model.hidden=[4] data.batch_size=64 trainer.accelerator=cpu trainer.max_epochs=1 logger=none"
    run, result = create_and_train(compose(*words.split()))
    assert run.status == "completed" and "test/accuracy" in result["metrics"]
    said = capsys.readouterr().err
    assert (
        "no figures of the data: no such picture" in said
        and "no figures of the validation part: no such picture" in said
    )
    assert "no figures of the test part: no such picture" in said and said.count("\n") == 3


def test_a_full_disk_is_not_taken_for_a_bad_figure():
    from quartet.callbacks.figures import optional

    with pytest.raises(OSError), optional("figures"):
        raise OSError(28, "No space left on device")


def test_text_in_a_table_is_no_markdown():
    from quartet.callbacks.figures import cell

    text = "if __name__ == '__main__':\n    a | b  # *all* <b>&amp;</b>"
    assert cell(text) == (
        r"if \_\_name\_\_ == '\_\_main\_\_':<br>&nbsp;&nbsp;&nbsp;&nbsp;a \| b  \# \*all\* &lt;b&gt;&amp;amp;&lt;/b&gt;"
    )
