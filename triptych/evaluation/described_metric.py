"""`evaluate` modules that need say nothing twice: their docstrings are their descriptions."""

import abc
import sys
from typing import Any, ClassVar

import datasets
import evaluate


# Abstract, or `evaluate.load` takes it for the metric of a file that imports it.
class DescribedMetric(evaluate.Metric, abc.ABC):
    """A metric that its module's docstring describes, and whose `_compute` describes inputs and results.

    Attributes:
        columns (`dict`): Features of one prediction and one reference. Default: a text, and the true ones.
        source (`str`): Address of the benchmark, to cite.
    """

    columns: ClassVar[dict[str, Any]] = {
        "predictions": datasets.Value("string"),
        "references": datasets.Sequence(datasets.Value("string")),
    }
    source: ClassVar[str]

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=sys.modules[type(self).__module__].__doc__,
            citation=self.source,
            inputs_description=self._compute.__doc__,
            features=datasets.Features(self.inputs()),
            reference_urls=[self.source],
        )

    def inputs(self) -> dict[str, Any]:
        """Features of what is compared; some depend on `config_name`."""
        return self.columns

    def compute(self, *, predictions: list | None = None, references: list | None = None, **kwargs: Any) -> Any:
        """Numbers of all rows, those added before included.

        Raises:
            ValueError: If there is none.
        """
        if predictions is not None and not len(predictions):
            raise ValueError(f"`predictions` of {self.name} is empty; expected at least one.")
        return super().compute(predictions=predictions, references=references, **kwargs)

    @abc.abstractmethod
    def _compute(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Numbers of all predictions."""


__all__ = ["DescribedMetric"]
