"""The specs of the four custom resources, as the schemas of the chart say them. The API server has checked what comes in."""
