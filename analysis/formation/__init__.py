"""How the vector of a text is formed: knockout, erasure, attribution, attention."""
