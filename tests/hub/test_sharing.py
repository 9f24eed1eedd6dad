"""Publishing from the page what was learnt there, over the Hub's real protocol."""

import json
import shutil
import urllib.request

import gradio as gr
import pytest
import yaml

from ddad.app.sharing import publish_archive
from tests.conftest import ROOT
from tests.hub.server import TOKEN
from tools.serve import running_page

PUBLISH = """
    import sys
    import gradio as gr
    from ddad.app.sharing import publish_archive
    archive, repository, license_name, public, token = sys.argv[1:]
    try:
        print(publish_archive(archive, repository, license_name, "Brackets of one machine.", public == "yes", token))
    except gr.Error as error:
        sys.exit(f"{error.title}: {error.message}")
"""


@pytest.fixture
def archive(checkpoint, tmp_path):
    """A zip as the page gives it: settings and weights in one folder, and more that is not for others."""
    return shutil.make_archive(str(tmp_path / "bracket"), "zip", checkpoint.parent, checkpoint.name)


@pytest.mark.slow
def test_what_was_learnt_becomes_a_private_repository_that_loads(archive, hub, run):
    assert hub.url in run(archive, "factory/bracket", "", "no", TOKEN, code=PUBLISH, HF_TOKEN=None)
    repository = hub.repositories["factory/bracket"]
    assert repository.private
    files = repository.commits[repository.branches["main"]]
    assert "pipeline.py" in files and "unet/unet_ddad.py" in files and "notes.txt" not in files
    card = files["README.md"].decode()
    assert "Brackets of one machine." in card and json.loads(files["training.json"])["config"]["license"] == ""
    load = """
        import sys
        from ddad import DDADPipeline
        print(DDADPipeline.from_pretrained(sys.argv[1]).config.category)
    """
    assert run("factory/bracket", code=load).strip() == "tiny"


@pytest.mark.slow
def test_a_public_one_has_the_licence_that_was_chosen(archive, hub, run):
    run(archive, "factory/open", "mit", "yes", TOKEN, code=PUBLISH, HF_TOKEN=None)
    repository = hub.repositories["factory/open"]
    files = repository.commits[repository.branches["main"]]
    assert not repository.private
    assert yaml.safe_load(files["README.md"].decode().split("---")[1])["license"] == "mit"


@pytest.mark.slow
def test_what_the_hub_refuses_is_said(archive, hub, run):
    told = run(archive, "factory/bracket", "", "no", "hf_other", code=PUBLISH, status=1, HF_TOKEN=None)
    assert "Nothing was published: The Hub refused" in told and "Traceback" not in told
    assert "factory/bracket" not in hub.repositories


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"archive": None}, "Learn a part first"),
        ({"token": None}, "Log in"),
        ({"repository": "bracket"}, "USER/NAME"),
        ({"repository": "../bracket"}, "USER/NAME"),
        ({"public": True}, "licence"),
    ],
)
def test_what_is_missing_is_asked_for_before_anything_is_sent(given, reason, archive):
    values = {
        "archive": archive, "repository": "factory/bracket", "license_name": "", "source": "", "public": False,
        "token": TOKEN,
    }  # fmt: skip
    with pytest.raises(gr.Error, match=reason):
        publish_archive(**{**values, **given})


@pytest.mark.slow
def test_on_a_space_visitors_log_in_with_their_own_account(hub):
    space = {
        "SYSTEM": "spaces", "SPACE_ID": "factory/demo", "OAUTH_CLIENT_ID": "id", "OAUTH_CLIENT_SECRET": "secret",
        "OAUTH_SCOPES": "openid profile contribute-repos", "OPENID_PROVIDER_URL": hub.url,
    }  # fmt: skip
    with running_page(ROOT / "app.py", **space) as url:
        page = urllib.request.urlopen(url, timeout=20).read().decode()
    assert "Sign in with Hugging Face" in page
