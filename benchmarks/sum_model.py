"""Another model in the same server: adds the numbers of each row."""

from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


class SumModel(MLModel):
    """Input `rows` FP32 `[N,2]`, output `sums` FP32 `[N,1]`."""

    async def load(self) -> bool:
        """Nothing to load."""
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Return the sum of each row."""
        data = payload.inputs[0].data.root
        sums = [left + right for left, right in zip(data[::2], data[1::2], strict=True)]
        output = ResponseOutput(name="sums", shape=[len(sums), 1], datatype="FP32", data=sums)
        return InferenceResponse(model_name=self.name, outputs=[output])
