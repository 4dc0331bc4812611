"""The cellar: what train and generate share and what needs torch. Nobody else comes here."""
