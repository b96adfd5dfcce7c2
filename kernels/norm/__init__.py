"""Row norms: what rmsnorm and layernorm share. A norm with a bias is centred (LayerNorm), one without is RMSNorm."""
