"""The second half of a gated feed-forward layer: activation, gate and the projection down."""
