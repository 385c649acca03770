"""Studies, the demo and tools around the plugin, which the plugin itself never imports."""
