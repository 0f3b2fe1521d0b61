"""The MQTT broker, over aiomqtt."""
