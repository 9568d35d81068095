"""What `tessera doctor` looks at, each as a function: ward in, findings out."""
