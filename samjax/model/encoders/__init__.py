"""Image encoders, and what training and conversion need to know about each."""
