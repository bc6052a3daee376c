"""Engines that judge in a process of their own, which holds nothing and can be killed: Rego and WebAssembly."""
