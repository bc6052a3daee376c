"""What runs on the other side: the zygote and its workers, of the standard library and `sark_mw.errors` alone."""
