"""What a tracker lacks is said before anything starts."""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from gemfleet.launcher.config.reports import TrackerConfig
from gemfleet.launcher.tracking import check
from gemfleet.launcher.tracking.check import check_trackers
from gemfleet.train.errors import UserError

VARIABLES = ("MLFLOW_TRACKING_URI", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL")


@pytest.mark.parametrize(
    ("tracker", "installed", "said"),
    [
        ({"type": "mlflow", "uri": "http://host"}, (), "run `pip install 'gemfleet[mlflow]'` on the head"),
        ({"type": "wandb", "mode": "offline"}, (), "run `pip install 'gemfleet[wandb]'` on the head"),
        ({"type": "mlflow"}, ("mlflow",), "uri of mlflow is null and $MLFLOW_TRACKING_URI is not set"),
        ({"type": "mlflow", "uri": "sqlite:////srv/a.db"}, ("mlflow",), "`pip install sqlalchemy alembic`"),
        ({"type": "wandb"}, ("wandb",), "set $WANDB_API_KEY or run `wandb login` on the head"),
    ],
)
def test_what_is_missing_has_a_remedy(
    tracker: dict[str, str],
    installed: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(check, "find_spec", lambda name: ModuleSpec(name, None) if name in installed else None)
    with pytest.raises(UserError) as refused:
        check_trackers([TrackerConfig.model_validate(tracker)])
    assert said in str(refused.value)


def test_credentials_are_found_where_wandb_login_puts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs the wandb extra")
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0123456789\n")
    check_trackers([TrackerConfig(type="wandb")])
