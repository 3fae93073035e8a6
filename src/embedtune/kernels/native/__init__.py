"""Kernels in C++ that are compiled for this CPU when they are first needed."""
