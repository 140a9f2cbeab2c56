"""Videos in a browser."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lynx_parallel.stages.video import encode_video
from tests.helpers.chromium import Chromium, chromium_path

pytestmark = pytest.mark.skipif(chromium_path() is None, reason="Chromium is not installed")

PAGE = """<video muted src="a.mp4"></video><script>
const video = document.querySelector('video');
window.ended = new Promise((done, failed) => {
  video.onended = () => done([video.videoWidth, video.videoHeight, video.duration]);
  video.onerror = () => failed(new Error(video.error.message));
});
video.play();
</script>"""


@pytest.mark.parametrize("shape", [(9, 48, 64), (17, 144, 96)])
def test_h264_plays_to_its_end(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    encode_video(frames, tmp_path / "a.mp4", fps=16, codec="h264", crf=18)
    (tmp_path / "page.html").write_text(PAGE)
    with Chromium() as browser:
        browser.open((tmp_path / "page.html").as_uri())
        if not browser.evaluate("document.createElement('video').canPlayType('video/mp4; codecs=\"avc1.64000a\"')"):
            pytest.skip("this Chromium has no decoder of h264")
        width, height, duration = browser.evaluate("window.ended")
        assert (width, height) == (shape[2], shape[1])
        assert duration == pytest.approx(shape[0] / 16, abs=0.01)
        assert not browser.errors
