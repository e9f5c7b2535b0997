"""Tables: fitted on the training part only, a place for what is missing or unseen, exact through JSON."""

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch

from quartet.data.table.columns import category
from quartet.data.table.tabular import EmbeddedTable, Table, TableData, fit_scaling, scale


@dataclass(frozen=True)
class Given:
    table: Table

    def load(self):
        return self.table


def mixed(n=50):
    """Two numeric columns with gaps, one categorical with gaps, two classes."""
    random = np.random.default_rng(0)
    age, income = random.normal(40, 10, n), random.lognormal(10, 1, n)
    age[:5], income[7] = np.nan, np.inf
    city = random.choice(np.array(["Bonn", "Köln", None], dtype=object), n)
    return Table({"age": age, "income": income}, {"city": city}, np.arange(n) % 2, "churn", ("no", "yes"))


def make(table=None, source=None, scaling="standard", **changes):
    values = {
        "batch_size": 8,
        "split": [0.6, 0.2, 0.2],
        "split_seed": 0,
        "folds": None,
        "fold": None,
        "seed": 0,
        **changes,
    }
    data = TableData(source=source or Given(table or mixed()), scaling=scaling, **values)
    data.setup()
    return data


def replace(table, **changes):
    return Table(**{**table.__dict__, **changes})


def batch_of(data, part="train"):
    return data.datasets[part].gather(torch.arange(len(data.datasets[part])))


@pytest.mark.parametrize(
    ("name", "rows", "sizes"),
    [
        ("breast_cancer", 569, {"n_numeric": 30, "cardinalities": [], "n_outputs": 2}),
        ("wine", 178, {"n_numeric": 13, "cardinalities": [], "n_outputs": 3}),
        ("diabetes", 442, {"n_numeric": 9, "cardinalities": [3], "n_outputs": 1}),
    ],
)
def test_embedded_tables(name, rows, sizes):
    data = make(source=EmbeddedTable(name))
    assert sum(map(len, data.ids.values())) == rows
    assert {**sizes, "quantiles": data.spec.sizes["quantiles"]} == data.spec.sizes
    assert len(data.spec.classes) == len(data.spec.class_counts) == (0 if name == "diabetes" else sizes["n_outputs"])


def test_unknown_embedded_table_names_the_choices():
    with pytest.raises(
        ValueError, match=r"data\.source\.name must be one of breast_cancer, wine, diabetes, not 'iris'"
    ):
        EmbeddedTable("iris").load()


def test_unknown_scaling_names_the_choices():
    with pytest.raises(ValueError, match=r"data\.scaling must be one of standard, minmax, quantile, not 'robust'"):
        make(scaling="robust")


def test_classes_and_training_counts_are_in_the_spec():
    spec = make().spec
    assert spec.classes == ("no", "yes") and spec.class_counts == (15, 15)


def test_training_columns_have_mean_0_and_std_1():
    numeric = batch_of(make(source=EmbeddedTable("breast_cancer")))["inputs"]["numeric"]
    assert numeric.dtype == torch.float32
    torch.testing.assert_close(numeric.mean(0), torch.zeros(30), atol=1e-5, rtol=0)
    torch.testing.assert_close(numeric.std(0, correction=0), torch.ones(30), atol=1e-5, rtol=0)


def test_regression_target_is_standardised_and_comes_back():
    data, table = make(source=EmbeddedTable("diabetes")), EmbeddedTable("diabetes").load()
    target, spec = batch_of(data)["target"], data.spec
    assert target.dtype == torch.float32 and abs(target.mean()) < 1e-6 and abs(target.std(correction=0) - 1) < 1e-6
    test = batch_of(data, "test")["target"].double() * spec.target_std + spec.target_mean
    np.testing.assert_allclose(test, table.target[data.ids["test"]], rtol=1e-5)


@pytest.mark.parametrize("scaling", ["standard", "minmax", "quantile"])
def test_only_the_training_part_is_fitted(scaling):
    table = mixed()
    fitted = make(table, scaling=scaling)
    held_out = fitted.ids["val"] + fitted.ids["test"]
    age, city = table.numeric["age"].copy(), table.categorical["city"].copy()
    age[held_out], city[held_out] = 1e6, "Paris"
    changed = replace(table, numeric={**table.numeric, "age": age}, categorical={"city": city})
    refitted = make(changed, scaling=scaling).preprocessing()
    assert refitted["fingerprint"] != fitted.preprocessing()["fingerprint"]
    assert {**refitted, "fingerprint": 0} == {**fitted.preprocessing(), "fingerprint": 0}


def test_only_the_training_targets_are_fitted():
    table = EmbeddedTable("diabetes").load()
    data = make(table)
    target = table.target.copy()
    target[data.ids["test"]] += 1000
    assert make(replace(table, target=target)).spec == data.spec


@pytest.mark.parametrize("change", ["cell", "category", "target", "column name", "class name"])
def test_fingerprint_sees_every_change(change):
    table = mixed()
    age, city, target = (x.copy() for x in (table.numeric["age"], table.categorical["city"], table.target))
    age[-1] += 1e-9
    city[0] = "Paris"
    target[0] ^= 1
    changed = {
        "cell": replace(table, numeric={**table.numeric, "age": age}),
        "category": replace(table, categorical={"city": city}),
        "target": replace(table, target=target),
        "column name": replace(table, categorical={"town": table.categorical["city"]}),
        "class name": replace(table, classes=("no", "maybe")),
    }[change]
    assert changed.fingerprint() != table.fingerprint() == mixed().fingerprint()


def test_quantiles_are_those_of_the_scaled_training_rows():
    data = make(source=EmbeddedTable("wine"))
    numeric = batch_of(data)["inputs"]["numeric"]
    quantiles = torch.tensor(data.spec.sizes["quantiles"])
    assert quantiles.shape == (13, 65)
    torch.testing.assert_close(quantiles[:, [0, 32, 64]].T, numeric.quantile(torch.tensor([0, 0.5, 1]), dim=0))


@pytest.mark.parametrize(("name", "shown"), [("wine", "classes"), ("diabetes", "histograms")])
def test_the_report_counts_and_describes(name, shown):
    data = make(source=EmbeddedTable(name))
    report = json.loads(json.dumps(data.report()))
    assert sum(facts["samples"] for facts in report["parts"].values()) == len(EmbeddedTable(name).load())
    assert shown in report and all(column["missing"] == 0 for column in report["columns"])
    assert {column["column"] for column in report["columns"]} == set(data.columns)


# missing and unseen values


def test_missing_numbers_become_the_training_mean_everywhere():
    table = mixed()
    data = make(table)
    for part, ids in data.ids.items():
        gaps = np.isnan(table.numeric["age"][ids])
        assert (batch_of(data, part)["inputs"]["numeric"][gaps, 0] == 0).all()
        assert batch_of(data, part)["inputs"]["numeric"].isfinite().all()


def test_unseen_and_missing_categories_share_slot_0():
    data = make()
    assert data.spec.sizes["cardinalities"] == [3]
    row = {"age": 1, "income": 1}
    rows = [{**row, "city": city} for city in ("Bonn", "Köln", "Paris", None, "", float("nan"))]
    assert data.encode(rows)["categorical"][:, 0].tolist() == [1, 2, 0, 0, 0, 0]


def test_a_category_is_the_same_as_number_and_as_text():
    assert [category(x) for x in (1, 1.0, np.float32(1), np.int64(1), "1")] == ["1"] * 5
    assert [category(x) for x in (1.5, True, float("inf"), None, np.nan, "")] == [
        "1.5",
        "True",
        "inf",
        None,
        None,
        None,
    ]


def test_a_column_without_any_value_is_zero():
    table = mixed()
    empty = np.full(len(table), np.nan)
    nothing = np.full(len(table), None, dtype=object)
    data = make(replace(table, numeric={"empty": empty}, categorical={"nothing": nothing}))
    assert data.spec.sizes == {"n_numeric": 1, "quantiles": [[0.0] * 65], "cardinalities": [1], "n_outputs": 2}
    inputs = batch_of(data)["inputs"]
    assert not inputs["numeric"].any() and not inputs["categorical"].any()


def test_tables_of_one_kind_keep_both_inputs():
    table = mixed()
    inputs = batch_of(make(replace(table, numeric={})))["inputs"]
    assert inputs["numeric"].shape == (30, 0) and inputs["categorical"].shape == (30, 1)
    inputs = batch_of(make(replace(table, categorical={})))["inputs"]
    assert inputs["numeric"].shape == (30, 2) and inputs["categorical"].shape == (30, 0)


# scaling


@pytest.mark.parametrize("scaling", ["standard", "minmax", "quantile"])
def test_a_constant_column_stays_finite_and_small(scaling):
    fitted = fit_scaling(np.full(7, 0.1), scaling)
    assert abs(scale(np.array([0.1, 0.2, np.nan]), fitted)).max() < 0.2


def test_minmax_maps_training_to_0_and_1():
    fitted = fit_scaling(np.array([2.0, 4.0, np.nan, 6.0]), "minmax")
    assert scale(np.array([2.0, 4.0, 6.0, 8.0, np.nan]), fitted).tolist() == [0, 0.5, 1, 1.5, 0.5]


def test_quantile_makes_any_distribution_normal():
    values = np.random.default_rng(0).lognormal(0, 2, 5000)
    fitted = fit_scaling(values, "quantile")
    scaled = scale(values, fitted)
    assert len(fitted["quantiles"]) == 1000
    assert abs(scaled.mean()) < 0.01 and abs(scaled.std() - 1) < 0.01
    assert (np.argsort(scaled, kind="stable") == np.argsort(values))[
        50:-50
    ].all()  # the order is kept (ends are clamped)
    assert np.isfinite(scale(np.array([-1e9, 1e9]), fitted)).all()


def test_quantile_gives_equal_values_their_mean_rank():
    fitted = fit_scaling(np.array([0.0, 0.0, 0.0, 0.0, 1.0, 2.0]), "quantile")
    assert fitted["quantiles"] == [0.0, 1.0, 2.0]
    np.testing.assert_allclose(fitted["scores"], [-0.4307, 0.6745, 1.3830], atol=1e-4)  # Φ⁻¹ of 2/6, 4.5/6, 5.5/6


# inference


@pytest.mark.parametrize("scaling", ["standard", "minmax", "quantile"])
def test_encoding_a_row_again_gives_what_the_network_was_trained_on(scaling):
    table = mixed()
    data = make(table, scaling=scaling)
    restored = TableData(
        source=Given(table),
        scaling=scaling,
        batch_size=8,
        split=[0.8, 0.1, 0.1],
        split_seed=0,
        folds=None,
        fold=None,
        seed=0,
    )
    restored.restore(json.loads(json.dumps(data.preprocessing())))
    columns = {**table.numeric, **table.categorical}
    rows = [{name: values[i] for name, values in columns.items()} for i in data.ids["val"]]
    texts = [{name: "" if x is None else str(x) for name, x in row.items()} for row in rows]
    for encoded in (restored.encode(rows), restored.encode(texts)):
        assert torch.equal(encoded["numeric"], batch_of(data, "val")["inputs"]["numeric"])
        assert torch.equal(encoded["categorical"], batch_of(data, "val")["inputs"]["categorical"])


def test_further_columns_are_ignored_in_any_order():
    data = make()
    plain = data.encode([{"age": 30, "income": 2000, "city": "Bonn"}])
    wider = data.encode([{"name": "Eva", "city": "Bonn", "income": 2000, "age": 30}])
    assert all(torch.equal(plain[name], wider[name]) for name in plain)


def test_a_data_frame_is_encoded_like_its_rows():
    rows = [{"age": 30, "income": 2000, "city": "Bonn"}, {"age": None, "income": 1, "city": "Rom"}]
    plain, framed = make().encode(rows), make().encode(pd.DataFrame(rows))
    assert all(torch.equal(plain[name], framed[name]) for name in plain)


def test_an_absent_column_is_named():
    with pytest.raises(ValueError, match=r"row 2 has no column 'income', 'city'"):
        make().encode([{"age": 30, "income": 1, "city": "Bonn"}, {"age": 30}])


def test_text_in_a_numeric_column_is_named():
    with pytest.raises(ValueError, match="column 'age' must hold a number, but row 1 has 'thirty'"):
        make().encode([{"age": "thirty", "income": 1, "city": "Bonn"}])


def test_encoding_nothing_gives_nothing():
    inputs = make().encode([])
    assert inputs["numeric"].shape == (0, 2) and inputs["categorical"].shape == (0, 1)
