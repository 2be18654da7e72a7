"""Forecasters: settings that fit a group of series at once, and the forecasts of the group."""
