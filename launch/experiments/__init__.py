"""Many runs for one question: how it scales, which settings are best, does a larger model pay."""
