"""Where and how [CLS] gathers the sentence: knockout, erasure, attention, attribution."""
