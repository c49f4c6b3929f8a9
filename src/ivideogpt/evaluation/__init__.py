"""How good imagined video is: frame metrics, the objects of Push-T, predicted episodes, and pictures of them."""
