"""The demo: a fake provider, a small gateway behind `SarkMiddleware`, and official clients that spend until nothing is left."""
