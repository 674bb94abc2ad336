"""Section ``scale`` drives the stages' own functions, whatever these ask for today."""

from benchmarks import scale


def test_every_step_is_measured_for_every_count():
    _, table = scale.run(scale.QUICK, "cpu")
    measured = {(row[0], int(row[1])) for row in table.rows}
    names = [name for name, _ in scale.STEPS.values()]
    assert measured == {(n, c) for n in names for c in scale.QUICK.utterances}
