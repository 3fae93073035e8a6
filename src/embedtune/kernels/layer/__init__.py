"""The parts of a transformer layer that normalises after each residual (BERT's), each as one autograd function."""
