"""Moving coloured shapes: captions, rendered clips, and a judge that reads clips back."""
