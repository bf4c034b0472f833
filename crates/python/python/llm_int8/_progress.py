"""Progress bars in terminals and notebooks, if tqdm is installed."""

import contextlib
import os


class Bars(contextlib.ExitStack):
    """One bar for each file that is downloaded, and one for the modules that are loaded."""

    @staticmethod
    def of(progress):
        """What shows progress: bars, the caller's function, or nothing."""
        if callable(progress):
            return contextlib.nullcontext(progress)
        is_off = os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS", "").lower() in ("1", "on", "yes", "true")
        if progress is False or (progress is None and is_off):
            return contextlib.nullcontext(None)
        try:
            from tqdm.auto import tqdm
        except ImportError:
            return contextlib.nullcontext(None)
        return Bars(tqdm)

    def __init__(self, tqdm):
        super().__init__()
        self.tqdm = tqdm
        self.bars = {}

    def __call__(self, what, advance, total):
        bar = self.bars.get(what)
        if bar is None:
            if what == "modules":
                bar = self.tqdm(desc="loading", total=total, unit="module", leave=False, delay=0.5)
            else:
                bar = self.tqdm(desc=what, total=total, unit="B", unit_scale=True, leave=False, delay=0.5)
            self.bars[what] = self.enter_context(bar)
        bar.update(advance)
