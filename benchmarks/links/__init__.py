"""Step time against link speed, ours and the peers', over the links of a lab (CC-8, CC-27, CC-28)."""
