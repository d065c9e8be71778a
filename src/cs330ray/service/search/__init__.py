"""The search: which configuration is next, and whether a trial stops. Pure: nothing is kept between two calls."""
