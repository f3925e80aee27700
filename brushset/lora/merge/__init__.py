"""Several adapters as one file: the arithmetic of mixing. A file a method, each from its paper's formula.

    concat      Σ wᵢΔWᵢ, the factors side by side            rank Σ rᵢ       exact
    weighted    Σ wᵢΔWᵢ, at the least rank that holds it     rank ≤ Σ rᵢ     exact
    svd         its best approximation of a rank             any rank        loss stated
    ties        trim, elect a sign, mean of those that agree any rank        loss stated
    dare        drop at random, rescale, sum                 any rank        loss stated

All of them work on ΔW, module by module: adding or pruning the factors themselves is not the sum of the updates (PEFT's
"linear" is 100 % off, by the cross terms).
"""
