"""Neural networks that see a window of samples and predict the next, trained for many series at once."""

from apps.chaos.forecasters.deep.linear import DLinear, NLinear
from apps.chaos.forecasters.deep.nbeats import NBeats
from apps.chaos.forecasters.deep.nhits import NHits
from apps.chaos.forecasters.deep.recurrent import LSTM, RNN
from apps.chaos.forecasters.deep.tcn import TCN
from apps.chaos.forecasters.deep.training import DeepForecaster
from apps.chaos.forecasters.deep.transformer import Transformer

__all__ = ["LSTM", "RNN", "TCN", "DLinear", "DeepForecaster", "NBeats", "NHits", "NLinear", "Transformer"]
