"""Other people's tokenizers behind kinema's interface, and kinema's where diffusers expects an auto-encoder."""
