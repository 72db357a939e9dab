"""What runs inside vLLM's worker where adapters are merged into the running engine (`evaluate_as: merged`).

vLLM mixes the class into its worker (`worker_extension_cls`) and calls it by name (`LLM.collective_rpc`), as its
documentation replaces the weights of a model in training. Compiled graphs go on working: weights change where they lie.
"""

from __future__ import annotations

from spillover.merging import Merging


class MergeAdapters:
    """A part of vLLM's worker: one adapter at a time in the weights of its model."""

    def merge_adapter(self, base: str, adapter: str | None) -> dict:
        """Make the engine's model that of the folder `base` with this adapter (None: without).

        Returns what rounding kept (`Merging.weights`). Raises ValueError when the adapter does not fit the model.
        """
        model = self.model_runner.model
        if not hasattr(self, "merging"):
            self.merging = Merging(base, next(model.parameters()).device)
        report: dict = {}
        model.load_weights(self.merging.weights(adapter, report))
        return report
