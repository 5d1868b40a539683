import pytest

pytest.importorskip("pydantic")
pytest.importorskip("tensorboard")

import training_runs


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """The root of the small data set of `training_runs`."""
    return training_runs.write_data(tmp_path_factory.mktemp("rectangles"))


@pytest.fixture
def config(data, tmp_path):
    """Makes configs of a short run on `data` into tmp_path / "run", with changes."""

    def make(*sets):
        return training_runs.make_config(data, tmp_path / "run", *sets)

    return make
