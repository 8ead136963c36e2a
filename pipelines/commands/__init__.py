"""The commands of `quantone`: arguments in, one public function called, a few lines out."""
